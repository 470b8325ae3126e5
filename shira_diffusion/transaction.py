"""Exchanges in the groups of a model: all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shira_diffusion.errors import EntriesChangedError, MismatchError
from shira_diffusion.places import Step, WeightTable
from shira_diffusion.scatter import exchange_many, nothing
from shira_diffusion.sites import Group

Take = Callable[[WeightTable, Sequence[Step]], None]


@contextmanager
def all_or_none(meanwhile: Callable[[], None] = nothing) -> Iterator[Take]:
    """Exchanges in several tables, all of which are taken back if the block fails.

    Each calls `meanwhile` while a GPU works; if that raises, the block fails.
    """
    taken: list[tuple[WeightTable, Sequence[Step]]] = []

    def take(table: WeightTable, steps: Sequence[Step]) -> None:
        exchange_many(table, steps, meanwhile)
        taken.append((table, steps))

    try:
        yield take
    except BaseException:
        for table, steps in reversed(taken):
            exchange_many(table, [step.reversed() for step in reversed(steps)])
        raise


def turns(old: Step | None, new: Step | None) -> list[Step]:
    """The steps out of the old mix and into the new one; between strengths it is one."""
    if old is not None and new is not None and old.places is new.places:
        return [old.then(new)]
    out = [] if old is None else [old.reversed()]
    return out if new is None else [*out, new]


@contextmanager
def naming(group: Group) -> Iterator[None]:
    """Say which weight it is that cannot be given back its base."""
    try:
        yield
    except EntriesChangedError as error:
        raise MismatchError(
            f"the weight {group.slots[error.weight]!r} cannot be given back its base: something "
            "else changed it while adapters were active; load the base anew and make a new "
            "AdapterSwitcher"
        ) from error
