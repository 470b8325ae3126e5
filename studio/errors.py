"""What the studio can refuse, in words for the person at the page."""

from shira_diffusion.errors import ShiraError


class BrokenAdapterError(ShiraError):
    """An adapter's folder is listed, but its file cannot be used."""


class PictureError(ShiraError):
    """A picture is not one of ours, or can no longer be read."""


class MemoryShortageError(ShiraError):
    """The device ran out of memory while sampling."""


class StoppedError(ShiraError):
    """The person asked for a stop; the model is back at its base."""


class AddressError(ShiraError):
    """The page cannot be served at this address."""


class JobError(ShiraError):
    """There is no such job, or it cannot be done what was asked of it."""


class QueueFullError(ShiraError):
    """Too many jobs wait already."""


class GridError(ShiraError):
    """A grid of pictures cannot be read, or not be gone on with."""
