"""A grid's scores and losses in words, the same on the page, on the sheet and in the export."""

from collections.abc import Sequence

from studio.grids import compare
from studio.grids.compare import Loss
from studio.grids.grid import Grid
from studio.judges.judging import CONCEPT, Score


def score_words(scores: Sequence[Score]) -> str:
    """The scores of one picture in a line, or nothing."""
    return "   ".join(f"{wanted_words(one)} {one.value * 100:.0f} %" for one in scores)


def wanted_words(score: Score) -> str:
    """What a judge was asked for, and of a style that it is one."""
    words = _spelt(score.wanted)
    return words if score.kind == CONCEPT else f"{words} style"


def _spelt(label: str) -> str:
    """A judge's label as people write it; its own are the names of folders."""
    return label.replace("-", " ")


def scores_told(grid: Grid) -> str:
    """What the percentages under the pictures are; nothing where there are none."""
    if not any(cell.scores for cell in grid.cells):
        return ""
    return (
        "The percentages: how sure a judge is that the picture shows that thing or that style. The "
        "judge is a network of ours that looks at each picture by itself, and it can be wrong."
    )


def seen_words(score: Score) -> str:
    """What a score means, in a sentence."""
    sure = f"{score.value * 100:.0f} % sure that this is the {score.kind} “{_spelt(score.wanted)}”"
    first = "" if score.seen == score.wanted else f"; it sees “{_spelt(score.seen)}” first"
    return f"The judge is {sure}{first}."


def headline(grid: Grid) -> list[str]:
    """The losses as lines, one for each adapter's concept or style; none for other grids."""
    if grid.plan.kind != compare.KIND:
        return []
    found = compare.losses(grid)
    lines = []
    for kind, wanted in dict.fromkeys((one.kind, one.wanted) for one in found):
        parts = [one for one in found if (one.kind, one.wanted) == (kind, wanted)]
        title = "Concept loss" if kind == CONCEPT else "Style loss"
        words = "; ".join(map(_loss_words, parts))
        lines.append(f"{title} of {_spelt(wanted)}: {words}")
    if lines:
        lines.append(f"{_basis(found)} One grid is an impression, not a measurement.")
    return lines


def _loss_words(loss: Loss) -> str:
    # A loss that rounds to nothing has no sign.
    lost = round(loss.lost, 2) or 0.0
    shown = f"{lost:.2f}" if lost >= 0 else f"nothing, it gains {-lost:.2f}"
    return f"{loss.method} {shown} (alone {loss.single:.2f}, together {loss.joint:.2f})"


def _basis(found: Sequence[Loss]) -> str:
    pictures = max(one.pictures for one in found)
    seeds = "one seed" if pictures == 1 else f"the mean of {pictures} seeds"
    return f"Score alone minus score together, both from 0 to 1, {seeds}."


def caption(grid: Grid) -> str:
    """The grid's title with the prompt and the seed, as far as all its pictures share them."""
    recipes = [spot.recipe for spot in grid.plan.spots]
    parts = [grid.plan.title]
    if len({one.prompt for one in recipes}) == 1:
        parts.append(recipes[0].prompt.strip())
    if len({one.seed for one in recipes}) == 1:
        parts.append(f"seed {recipes[0].seed}")
    return "   ·   ".join(parts)


def cell_name(grid: Grid, index: int) -> str:
    """Where a cell stands, by its row and its column."""
    row, column = divmod(index, len(grid.plan.columns))
    return " · ".join(filter(None, (grid.plan.rows[row], grid.plan.columns[column])))
