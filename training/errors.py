"""What can go wrong in a training run, as errors whose message is meant for the user."""

from collections.abc import Sequence

from shira_diffusion.errors import ShiraError


class ConfigError(ShiraError):
    """A preset or an override is wrong; the message lists every fault."""


class DataError(ShiraError):
    """The training images or their captions cannot be used as they are."""


class RunError(ShiraError):
    """The run folder or the adapter's place does not allow this run."""


class TrainingError(ShiraError):
    """The optimisation itself cannot go on."""


def bullets(headline: str, faults: Sequence[str]) -> str:
    """Join a headline and its faults into one message, one fault a line."""
    return "\n".join([headline, *(f"  - {fault}" for fault in faults)])
