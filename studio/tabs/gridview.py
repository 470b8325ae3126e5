"""Grids of pictures as HTML; every text from outside is escaped here."""

from html import escape
from pathlib import Path

from studio.durations import duration
from studio.grids import axes, compare, export, wording
from studio.grids.grid import Cell, Grid
from studio.judges.judging import Score
from studio.tabs.fragments import file_url
from studio.worker import Standing

_METHOD_WORDS = {
    "SHiRA": "A sparse adapter: a few of the base's weights are changed, nothing is added",
    "LoRA": "Its twin: learned from the same pictures as a low-rank change of all the weights",
}


def empty(title: str, words: str) -> str:
    """What stands in the place of a grid before there is one."""
    return (
        f'<div class="grid-empty empty"><strong>{escape(title)}</strong>'
        f"<span>{escape(words)}</span></div>"
    )


def grid(state: Grid, *, crisp: bool) -> str:
    """The grid as it stands, with its headline and its files."""
    columns, rows = state.plan.columns, state.plan.rows
    heads = [
        f'<span class="cells-head" style="--r:1;--c:{place}">{escape(title)}</span>'
        for place, title in enumerate(columns, start=2)
    ]
    heads.append(f'<span class="cells-head corner" style="--r:1;--c:1">{_corner(state)}</span>')
    heads += [_row_head(title, place) for place, title in enumerate(rows, start=2)]
    figures = [_figure(state, index, crisp=crisp) for index in range(len(state.cells))]
    # A wide grid is turned on a narrow window, where its rows become columns.
    turns = " turns" if len(rows) < len(columns) else ""
    return (
        f'<p class="cells-caption">{escape(wording.caption(state))}</p>'
        f'<div class="cells-scroll"><div class="cells{turns}" '
        f'style="--rows:{len(rows)};--columns:{len(columns)}">'
        f"{''.join(heads)}{''.join(figures)}</div></div>"
        f"{_headline(state)}{_told(state)}{_files(state)}"
    )


def progress(standing: Standing | None, state: Grid | None) -> str:
    """A bar over the whole grid with the cell, the step and the time left; or the wait."""
    share, words = 0.0, "Waiting for the model…"
    if standing and standing.ahead:
        jobs = "1 job is" if standing.ahead == 1 else f"{standing.ahead} jobs are"
        words = f"{jobs} before this one…"
    elif state and state.at is not None:
        step = state.step
        begun = step.number / step.total if step else 0.0
        share = (state.done + begun) / len(state.cells)
        parts = [f"Picture {state.done + 1} of {len(state.cells)}"]
        if step:
            parts.append(f"step {step.number} of {step.total}")
        if state.seconds_left is not None:
            parts.append(f"about {duration(state.seconds_left)} left")
        words = " · ".join(parts)
    return (
        '<div class="progress" role="status">'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div>'
        f"<span>{escape(words)}</span></div>"
    )


def size(words: str, *, wrong: bool = False) -> str:
    """How large a grid will be, or what is wrong with it."""
    kind = "plan-size wrong" if wrong else "plan-size"
    return f'<p class="{kind}">{escape(words)}</p>'


def image(path: Path, alt: str, *, crisp: bool) -> str:
    """A picture that opens in full with a click."""
    kind, url = (' class="crisp"' if crisp else ""), escape(file_url(path))
    return (
        f'<a class="frame" href="{url}" target="_blank" rel="noopener">'
        f'<img{kind} src="{url}" alt="{escape(alt)}" loading="lazy"></a>'
    )


def _corner(state: Grid) -> str:
    """What changes along both sides, unless the headings say it themselves."""
    if state.plan.kind != axes.KIND:
        return ""
    down, across = state.plan.corner
    sides = ((across, "→"), (down, "↓"))
    return "<br>".join(f"{escape(name)} {arrow}" for name, arrow in sides if name)


def _row_head(title: str, place: int) -> str:
    method, _, rest = title.partition(" · ")
    content = escape(title)
    if method in _METHOD_WORDS:
        number = compare.METHODS.index(method)
        words = escape(_METHOD_WORDS[method])
        content = f'<span class="tag tag-{number}" title="{words}">{method}</span> {escape(rest)}'
    return f'<span class="cells-head row" style="--r:{place};--c:1">{content}</span>'


def _figure(state: Grid, index: int, *, crisp: bool) -> str:
    row, column = divmod(index, len(state.plan.columns))
    cell = state.cells[index]
    name = wording.cell_name(state, index)
    if cell.picture:
        body = image(cell.picture, name, crisp=crisp)
    else:
        body = _vacant(cell, working=index == state.at)
    scores = "".join(map(_score, cell.scores))
    caption = f"<figcaption>{scores}</figcaption>" if scores else ""
    return f'<figure style="--r:{row + 2};--c:{column + 2}">{body}{caption}</figure>'


def _vacant(cell: Cell, *, working: bool) -> str:
    if cell.problem:
        return f'<div class="frame vacant"><div class="empty">{escape(cell.problem)}</div></div>'
    return f'<div class="frame vacant{" working" if working else ""}"></div>'


def _score(score: Score) -> str:
    words = escape(wording.seen_words(score))
    return (
        f'<span class="score" title="{words}" style="--share:{score.value:.1%}">'
        f"{escape(wording.wanted_words(score))} <b>{score.value * 100:.0f}&nbsp;%</b></span>"
    )


def _headline(state: Grid) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in wording.headline(state))
    return f'<div class="headline">{lines}</div>' if lines else ""


def _told(state: Grid) -> str:
    words = wording.scores_told(state)
    return f'<p class="help scores-told">{escape(words)}</p>' if words else ""


def _files(state: Grid) -> str:
    made = export.exported(state)
    if state.at is not None or made is None:
        return ""
    links = [
        (made.sheet, "shira-grid.png", "Download as one picture"),
        (made.page, "shira-grid.html", "Download as one page"),
    ]
    items = "".join(
        f'<a class="act" href="{escape(file_url(path))}" download="{name}">{words}</a>'
        for path, name, words in links
    )
    return f'<div class="actions">{items}</div>'
