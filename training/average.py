"""A moving average of the trained values, which is what samples show and what is exported."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel
from torch import nn


class Average:
    """Keeps decay * average + (1 - decay) * values beside the values, by diffusers' `EMAModel`.

    The decay of step n, counted from 1, is not above n / (n + 9), and 0 at the first: so short runs
    are not an average of their beginning.
    """

    def __init__(self, values: Sequence[nn.Parameter], decay: float) -> None:
        self._values = values
        self._model = EMAModel(values, decay=decay)

    def update(self) -> None:
        """Take the values in as they are after a step."""
        self._model.step(self._values)

    def state(self) -> dict[str, Any]:
        """Return the average and how many steps are in it."""
        state: dict[str, Any] = self._model.state_dict()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._model.load_state_dict(dict(state))
        self._model.to(device=self._values[0].device)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the average in the values' place for the block."""
        self._model.store(self._values)
        self._model.copy_to(self._values)
        try:
            yield
        finally:
            self._model.restore(self._values)
