"""The place of the picture, as HTML: before, while and after it is made; texts are escaped here."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from studio.infotext import Record
from studio.jobs import Job, State
from studio.making import Making
from studio.tabs.fragments import file_url, progress
from studio.thumbnails import image_uri
from studio.worker import Standing

_ENDED = {
    State.FAILED: "That did not work",
    State.CANCELLED: "Stopped",
    State.INTERRUPTED: "Cut short when the studio ended",
}


def empty() -> str:
    """What stands in the place of the picture before there is one."""
    return _vacant(
        "Your picture will appear here",
        "Write what it should show, choose adapters if you like, and press Generate.",
    )


def ended(job: Job) -> str:
    """What stands there when a job made nothing, with a way to start it again."""
    words = job.error if job.state == State.FAILED else "Its settings are kept."
    button = '<button type="button" class="act" data-action="again">Start again</button>'
    return _vacant(_ENDED[job.state], words, button)


def waiting(standing: Standing | None, previous: Path | None, *, crisp: bool) -> str:
    """The picture before, dimmed, and how many jobs come first."""
    ahead = standing.ahead if standing else 0
    words = "Starting…" if not ahead else "1 job" if ahead == 1 else f"{ahead} jobs"
    words = words if not ahead else f"{words} before yours…"
    bar = '<div class="bar"><i style="width:0"></i></div>'
    foot = f'<div class="progress" role="status">{bar}<span>{words}</span></div>'
    return _busy(image(previous, "", crisp=crisp) if previous else "", foot)


def making(state: Making, look: Image.Image | None, previous: Path | None, *, crisp: bool) -> str:
    """A look at the picture on its way, or the one before, over the progress."""
    before = f"Picture {state.number} of {state.count} · " if state.count > 1 else ""
    foot = progress(state.step, before)
    if look is not None:
        # A preview is coarse by nature: smoothed it shows more than as squares.
        inside = f'<img src="{image_uri(look)}" alt="Preview">'
        return f'<div class="stage"><div class="frame look">{inside}</div>{foot}</div>'
    return _busy(image(previous, "", crisp=crisp) if previous else "", foot)


def done(path: Path, record: Record, siblings: Sequence[Path] = (), *, crisp: bool) -> str:
    """A finished picture, the others of its job, and what took how long."""
    picture = image(path, record.recipe.prompt, crisp=crisp)
    link = (
        f'<a class="act" href="{escape(file_url(path))}" '
        f'download="shira-{record.recipe.seed}.png">Download PNG</a>'
    )
    reuse = (
        '<button type="button" class="act" data-action="reuse" '
        'title="Set the form to what made this picture">Use these settings</button>'
    )
    others = _others(path, siblings, crisp=crisp) if len(siblings) > 1 else ""
    return (
        f'<div class="stage"><div class="frame">{picture}</div>{others}'
        f'{_facts(record)}<div class="actions">{link}{reuse}</div></div>'
    )


def image(path: Path, alt: str, *, crisp: bool) -> str:
    """A picture of the outputs folder; `crisp` ones keep their pixels when they are enlarged."""
    kind = ' class="crisp"' if crisp else ""
    return f'<img{kind} src="{escape(file_url(path))}" alt="{escape(alt)}">'


def _vacant(title: str, words: str, button: str = "") -> str:
    return (
        '<div class="stage"><div class="frame vacant"><div class="empty">'
        f"<strong>{escape(title)}</strong><span>{escape(words)}</span>{button}"
        "</div></div></div>"
    )


def _busy(inside: str, foot: str) -> str:
    kind = "frame busy" if inside else "frame vacant working"
    return f'<div class="stage"><div class="{kind}">{inside}</div>{foot}</div>'


def _others(shown: Path, siblings: Sequence[Path], *, crisp: bool) -> str:
    buttons = []
    for number, path in enumerate(siblings, start=1):
        current = ' aria-current="true"' if path == shown else ""
        words = f"Picture {number} of {len(siblings)}"
        buttons.append(
            f'<button type="button" data-action="pick" data-name="{escape(path.stem)}"{current} '
            f'title="{words}">{image(path, words, crisp=crisp)}</button>'
        )
    return f'<div class="siblings">{"".join(buttons)}</div>'


def _facts(record: Record) -> str:
    facts = [
        ("Seed", str(record.recipe.seed), "The same seed and settings give the same picture"),
        ("Sampling", f"{record.sampling_s:.2f} s", "Making the picture itself"),
        (
            "Switching",
            f"{record.switch_ms:.1f} ms",
            "Writing the adapters into the base and putting the base back, bit for bit",
        ),
    ]
    items = "".join(
        f'<div title="{escape(why)}"><dt>{name}</dt><dd>{escape(value)}</dd></div>'
        for name, value, why in facts
    )
    return f'<dl class="facts">{items}</dl>'
