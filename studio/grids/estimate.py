"""How long a grid will take, from the last picture that was made."""

from studio.errors import PictureError
from studio.grids.plan import Plan
from studio.pictures import PictureStore


def seconds(plan: Plan, pictures: PictureStore) -> float | None:
    """Seconds for the whole plan at the pace of the newest picture; None where there is none."""
    pace = _seconds_a_step(pictures)
    if pace is None:
        return None
    steps = {spot.key: spot.recipe.steps for spot in plan.spots if not spot.problem}
    return pace * sum(steps.values())


def _seconds_a_step(pictures: PictureStore) -> float | None:
    for name in pictures.recent(1):
        try:
            record = pictures.record(name)
        except PictureError:
            return None
        return record.sampling_s / record.recipe.steps
    return None
