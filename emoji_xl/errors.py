"""Errors that tell the user what to do."""


class RunError(Exception):
    """A run cannot start or go on; the message names the remedy."""
