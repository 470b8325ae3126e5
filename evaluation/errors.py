"""What can go wrong in an evaluation, as errors whose message is meant for the user."""

from shira_diffusion.errors import ShiraError


class PlanError(ShiraError):
    """A plan is wrong; the message lists every fault."""


class JudgeError(ShiraError):
    """A judge cannot be had: its package or its weights are missing."""


class EvaluationError(ShiraError):
    """What the plan asks for cannot be done here."""
