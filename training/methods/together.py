"""Methods on several modules of a pipeline, as one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from shira_diffusion import AdapterInfo
from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.formats.embeddings import write_word
from training.methods.base import Method, Trainable
from training.methods.content import write
from training.methods.tokens import TrainedWord


class Together:
    """The methods `parts` by where their modules are in the pipeline: `unet`, `text_encoder.…`.

    `undo` is called when all are closed.
    """

    def __init__(
        self, parts: Mapping[str, Trainable], undo: Callable[[], None] = lambda: None
    ) -> None:
        self.parts = parts
        self._undo = undo

    def parameters(self) -> list[nn.Parameter]:
        """Return the values of all parts."""
        return [value for part in self.parts.values() for value in part.parameters()]

    def gather(self) -> None:
        """Bring the gradients to the values of all parts."""
        for part in self.parts.values():
            part.gather()

    def write(self) -> None:
        """Bring all modules up to date."""
        for part in self.parts.values():
            part.write()

    def state(self) -> dict[str, Any]:
        """Return the parts' states by place."""
        return {place: part.state() for place, part in self.parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the parts' values."""
        for place, part in self.parts.items():
            part.restore(state[place])

    def groups(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the values as groups for an optimizer, the rate of each by its part's kind."""
        return [
            {"params": part.parameters(), "lr": rates[_kind(place)]}
            for place, part in self.parts.items()
        ]

    def save(self, path: Path, info: AdapterInfo) -> None:
        """Write the adapter file, and a new word's embeddings beside it."""
        methods = {place: part for place, part in self.parts.items() if isinstance(part, Method)}
        write({place: part.content() for place, part in methods.items()}, path, info)
        words = {
            place.partition(".")[0]: part.vectors
            for place, part in self.parts.items()
            if isinstance(part, TrainedWord)
        }
        if words:
            write_word(path.with_name(EMBEDDINGS), words, info)

    def facts(self) -> dict[str, str]:
        """Return what the parts say, those of the text encoders under their names."""
        facts: dict[str, str] = {}
        for place, part in self.parts.items():
            component = place.partition(".")[0]
            prefix = "" if component == "unet" else f"{component}: "
            facts |= {prefix + key: value for key, value in part.facts().items()}
        return facts

    def close(self) -> None:
        """Give all modules back as they were found."""
        for part in self.parts.values():
            part.close()
        self._undo()


def _kind(place: str) -> str:
    """Return which of the settings' rates the part at `place` has."""
    if place == "unet":
        return "lr"
    return "token_lr" if place.endswith("embeddings") else "text_lr"
