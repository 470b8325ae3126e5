"""How long a grid will take, from the last picture that was made."""

from collections.abc import Iterator
from pathlib import Path

from studio.errors import PictureError
from studio.grids.plan import Plan
from studio.grids.store import GridStore
from studio.pictures import PictureStore, read_record


def seconds(plan: Plan, pictures: PictureStore, grids: GridStore) -> float | None:
    """Seconds for the whole plan at the pace of the newest picture; None where there is none."""
    made = {path.stat().st_mtime_ns: path for path in _newest(pictures, grids)}
    if not made:
        return None
    try:
        record = read_record(made[max(made)])
    except PictureError:
        return None
    steps = {spot.key: spot.recipe.steps for spot in plan.spots if not spot.problem}
    return record.sampling_s / record.recipe.steps * sum(steps.values())


def _newest(pictures: PictureStore, grids: GridStore) -> Iterator[Path]:
    """The newest picture of Generate, and the last one of the newest grid."""
    for name in pictures.recent(1):
        yield pictures.path(name)
    for _, grid in grids.recent((), 1):
        yield from [cell.picture for cell in grid.cells if cell.picture][-1:]
