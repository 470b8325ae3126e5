"""Every error that this library raises for its users; the message is meant to be shown as it is."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class ShiraError(Exception):
    """The root: something is wrong that the user can put right."""


class SettingError(ShiraError):
    """A setting has a value that cannot work."""


class DeltaError(ShiraError):
    """Indices, values and shape do not make a sparse change of one weight."""


class FormatError(ShiraError):
    """A file is not what it should be."""


class MismatchError(ShiraError):
    """An adapter does not fit this model: a name, a shape, another base, a moved weight."""


class EntriesChangedError(MismatchError):
    """Something else wrote to entries of a weight: number `weight` of its table, in step `step`."""

    def __init__(self, weight: int, step: int):
        super().__init__(f"entries of weight {weight} do not hold what was last written to them")
        self.weight = weight
        self.step = step


class UnknownAdapterError(ShiraError):
    """No adapter of this name is loaded."""


class BaseModelError(ShiraError):
    """A base model cannot be loaded from where the user said."""


class CaptureError(ShiraError):
    """A step could not be recorded as a CUDA graph; it can be launched as ever."""


def nearest(name: str, known: Collection[str], *, most: int = 3) -> str:
    """The known names most like `name`, or the first ones, as words for the end of a message."""
    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    shown = close or sorted(known)[:most]
    return ("nearest: " if close else "there are: ") + ", ".join(repr(one) for one in shown)
