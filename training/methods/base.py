"""What the loop, the checkpoints and the export ask of a method."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from training.methods.content import Content

Gradients = Callable[[Mapping[str, nn.Parameter]], dict[str, Tensor]]
"""Gives the loss's gradients of named weights on a few calibration batches, fp32 on the CPU."""


class Trainable(Protocol):
    """Trainable values in a module that otherwise stays as it is."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the values for the optimizer, fp32."""

    def gather(self) -> None:
        """Bring the gradients to the values, after each backward pass or after several.

        It adds to what is there and leaves nothing behind that a second call would add again.
        """

    def write(self) -> None:
        """Bring the module up to date with the values; called after each optimizer step."""

    def state(self) -> dict[str, Any]:
        """Return all that `create` needs to go on from here."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the values from a `state` of the same layout."""

    def facts(self) -> dict[str, str]:
        """Return what the settings alone do not say, for the adapter's card."""

    def close(self) -> None:
        """Give the module back as it was found, bit for bit."""


@runtime_checkable
class Method(Trainable, Protocol):
    """A way to change a module's weights."""

    def content(self) -> Content:
        """Return the changes, for the adapter file."""
