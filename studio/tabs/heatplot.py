"""The heat map of two adapters as a plot: an SVG whose colours are the theme's, light or dark."""

from collections.abc import Iterator
from html import escape
from itertools import groupby

from studio.blends.heatmap import HeatMap

_LABEL, _HEAD, _WIDE, _HIGH, _GAP, _FOOT = 66, 34, 37, 24, 2, 40
_SCALE = 120
_SHORT = {"feed-forward": "feed", "convolution": "conv"}
_PERCENT = ("Overlap", "Opposed")


def heat_plot(shown: HeatMap, measure: str, pair: str) -> str:
    """The map as a figure: blocks of the network downwards, kinds of layer across.

    `pair` is what people call the two adapters.
    """
    width = _LABEL + len(shown.rows) * _WIDE
    width = max(width, _LABEL + _SCALE + 90)
    height = _HEAD + len(shown.columns) * _HIGH + _FOOT
    parts = [*_heads(shown), *_blocks(shown), *_cells(shown, measure), *_legend(shown, measure)]
    return (
        f'<figure class="heat-plot"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(_told(shown, measure, pair))}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(_caption(measure, pair))}</figcaption></figure>"
    )


def _caption(measure: str, pair: str) -> str:
    unit = " in %" if measure in _PERCENT else ""
    return f"{measure}{unit} of {pair}, by block of the network and kind of layer"


def _told(shown: HeatMap, measure: str, pair: str) -> str:
    """What the plot shows, for those who do not see it."""
    places = [
        (value, f"{block}, {layer}")
        for layer, values in zip(shown.rows, shown.values, strict=True)
        for block, value in zip(shown.columns, values, strict=True)
        if value is not None
    ]
    words = f"Heat map. {_caption(measure, pair)}"
    if not places:
        return f"{words}: they change no weight."
    (low, at_low), (high, at_high) = min(places), max(places)
    if low == high:
        return f"{words}: {_number(low, measure)} everywhere."
    return (
        f"{words}: from {_number(low, measure)} ({at_low}) to {_number(high, measure)} ({at_high})."
    )


def _heads(shown: HeatMap) -> Iterator[str]:
    """Kinds of layer above their columns: what they attend to, then which projection."""
    place = 0
    for kind, group in groupby(shown.rows, key=lambda row: row.split(" ")[0]):
        rows = list(group)
        middle = _LABEL + (place + len(rows) / 2) * _WIDE
        yield _text(middle, 12, _SHORT.get(kind, kind), "middle", "group")
        for number, row in enumerate(rows):
            left = _LABEL + (place + number + 0.5) * _WIDE
            yield _text(left, 27, row.removeprefix(kind).strip(), "middle")
        place += len(rows)


def _blocks(shown: HeatMap) -> Iterator[str]:
    for number, block in enumerate(shown.columns):
        yield _text(_LABEL - 8, _top(number) + _HIGH / 2 + 3, block, "end")


def _cells(shown: HeatMap, measure: str) -> Iterator[str]:
    spread = shown.highest - shown.lowest
    for place, (layer, values) in enumerate(zip(shown.rows, shown.values, strict=True)):
        left = _LABEL + place * _WIDE
        for number, (block, value) in enumerate(zip(shown.columns, values, strict=True)):
            box = (
                f'x="{left}" y="{_top(number)}" width="{_WIDE - _GAP}" height="{_HIGH - _GAP}" '
                'rx="3"'
            )
            if value is None:
                yield f'<rect {box} class="untouched"/>'
                continue
            share = (value - shown.lowest) / spread if spread else float(value > 0)
            words = f"{block}, {layer}: {_number(value, measure)}"
            middle = left + (_WIDE - _GAP) / 2, _top(number) + _HIGH / 2 + 3
            number_words = _number(value, measure).removesuffix(" %")
            yield (
                f"<g><title>{escape(words)}</title>"
                f'<rect {box} class="cell" style="--heat:{share:.3f}"/>'
                f"{_text(*middle, number_words, 'middle', 'value')}</g>"
            )


def _legend(shown: HeatMap, measure: str) -> Iterator[str]:
    """The scale of colours, in ten steps, between its two ends."""
    top = _HEAD + len(shown.columns) * _HIGH + 14
    step = _SCALE / 10
    if shown.lowest == shown.highest:
        yield _text(_LABEL, top + 9, f"{_number(shown.lowest, measure)} everywhere", "start")
        return
    for number in range(10):
        left = _LABEL + number * step
        yield (
            f'<rect x="{left}" y="{top}" width="{step + 0.3}" height="10" class="cell" '
            f'style="--heat:{number / 9:.3f}"/>'
        )
    yield _text(_LABEL - 8, top + 9, _number(shown.lowest, measure), "end")
    yield _text(_LABEL + _SCALE + 8, top + 9, _number(shown.highest, measure), "start")


def _top(number: int) -> float:
    return _HEAD + number * _HIGH


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    shown = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{shown}>{escape(words)}</text>'


def _number(value: float, measure: str) -> str:
    return f"{value * 100:.1f} %" if measure in _PERCENT else f"{value:.3g}"
