"""What a blend is and how its adapters interfere, as HTML; every text is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape

from studio.blends.account import Account
from studio.blends.interference import Measuring, Pair
from studio.jobs import Job, State
from studio.tabs.cards import size_words

_HEADS = (
    ("Overlap", "Of the values that the smaller adapter changes, the share that both change"),
    ("by chance", "The overlap that adapters of these sizes have if they pick values at random"),
    ("Opposed", "Of the shared values, the share that they push in opposite directions"),
    (
        "AWOM",
        "How much is left of A′B, the mean over the weights (in brackets: of the most possible)",
    ),
    ("AWOR", "The share of zeros in A′B, the mean over the weights: 1 is no interference"),
)
_MEANING = (
    "Overlap counts the values that both adapters change; where it is 0, a sum keeps both exactly. "
    "Opposed tells how often they then disagree: there a sum cancels, and TIES or Strongest picks "
    "a side. AWOM and AWOR are the measures of the SHiRA paper (arXiv 2406.13175): what is left "
    "when one change is applied after the other, A′B; a low AWOM and a high AWOR mean little "
    "multiplicative interference. Low numbers are no promise: adapters that are strictly "
    "orthogonal can still mix their concepts (arXiv 2510.03262). Look at the pictures as well."
)
_ENDED = {
    State.FAILED: ("That did not work", ""),
    State.CANCELLED: ("Stopped", "There is no blend yet."),
    State.INTERRUPTED: ("Cut short when the studio ended", "Press Blend again."),
}


def empty() -> str:
    """What stands in the place of the report before there is one."""
    return (
        '<div class="grid-empty empty"><strong>One adapter out of several</strong>'
        "<span>Choose at least two, say what happens where they meet, and press Blend. You will "
        "see how much they interfere, try the blend beside their plain sum, and keep it.</span>"
        "</div>"
    )


def busy(measuring: Measuring | None, ahead: int = 0) -> str:
    """How far the measuring is, or how many blends come first."""
    share = measuring.done / measuring.total if measuring and measuring.total else 0.0
    words = "Reading the adapters…"
    if ahead:
        words = "Another blend is made first…"
    elif measuring:
        words = f"Measuring interference: weight {measuring.done} of {measuring.total}"
    return (
        '<div class="progress" role="status">'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div><span>{words}</span></div>'
    )


def outcome(account: Account, size: int) -> str:
    """What came out: how it was made, how much it changes, how large its file is (bytes)."""
    facts = [
        ("How", account.blend.words, "What was done to the adapters"),
        (
            "Changed values",
            f"{account.entries:,} from {account.before:,}",
            "Those of the blend, and those of all parts counted together",
        ),
        (
            "Density",
            f"{account.density * 100:.2f} %",
            "Of the weights that it touches, the share that changes",
        ),
        ("File", size_words(size), "As it would lie in the library"),
    ]
    items = "".join(
        f'<div title="{escape(why)}"><dt>{name}</dt><dd>{escape(value)}</dd></div>'
        for name, value, why in facts
    )
    return f'<dl class="facts">{items}</dl>'


def report(pairs: Sequence[Pair], titles: Mapping[str, str]) -> str:
    """The interference of every pair as a table, with what it suggests."""
    heads = "".join(f'<th scope="col" title="{escape(why)}">{name}</th>' for name, why in _HEADS)
    rows = "".join(_pair_row(pair, titles) for pair in pairs)
    return (
        f"{_verdicts(pairs, titles)}"
        '<div class="cells-scroll"><table class="report">'
        f'<thead><tr><th scope="col">Pair</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<details class="help"><summary>What the numbers mean</summary><p>{escape(_MEANING)}</p>'
        "</details>"
    )


def _pair_row(pair: Pair, titles: Mapping[str, str]) -> str:
    name = pair_words(pair, titles)
    values = (
        f"{pair.overlap * 100:.1f} %",
        f"{pair.chance * 100:.1f} %",
        f"{pair.opposed * 100:.0f} %" if pair.shared else "–",
        f"{pair.awom:.3g} ({pair.relative_awom * 100:.1f}\u00a0%)",
        f"{pair.awor:.3f}",
    )
    cells = "".join(f"<td>{value}</td>" for value in values)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _verdicts(pairs: Sequence[Pair], titles: Mapping[str, str]) -> str:
    """What the table below says, in words."""
    lines = "".join(
        f"<p><strong>{escape(pair_words(pair, titles))}</strong>: {escape(pair.verdict)}</p>"
        for pair in pairs
    )
    return f'<div class="verdicts">{lines}</div>'


def pair_words(pair: Pair, titles: Mapping[str, str]) -> str:
    """What people call a pair."""
    return f"{titles.get(pair.a, pair.a)} and {titles.get(pair.b, pair.b)}"


def ended(job: Job) -> str:
    """What stands in the place of the report when a blend came to nothing."""
    title, words = _ENDED[job.state]
    return (
        f'<div class="grid-empty empty"><strong>{escape(title)}</strong>'
        f"<span>{escape(job.error if job.state == State.FAILED else words)}</span></div>"
    )


def kept(title: str, name: str) -> str:
    """That a blend is in the library now."""
    return (
        f'<p class="help">Saved as <strong>{escape(title)}</strong> (folder {escape(name)}): it is '
        "in the Library, and among the adapters of Generate.</p>"
    )
