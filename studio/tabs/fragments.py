"""Pieces of the page as HTML, pure functions; every text from outside is escaped here."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from studio.base import Base
from studio.infotext import Record
from studio.steps import Step
from studio.vocabulary import Vocabulary

DESCRIPTION = "Pictures with sparse adapters: mix several, switch at once, compare with LoRA."


def file_url(path: Path) -> str:
    """Where Gradio serves a file of the outputs folder, relative to the page."""
    return f"gradio_api/file={quote(path.as_posix())}"


def header(base: Base) -> str:
    """The studio's name and what it runs on."""
    width, height = base.native
    facts = f"{escape(base.name)} · {width} × {height} px · {escape(base.device)}"
    return (
        '<header class="masthead"><div><h1>SHiRA Studio</h1>'
        f"<p>{escape(DESCRIPTION)}</p></div>"
        f'<span class="badge" title="The base model, its native picture size, where it runs">'
        f"{facts}</span></header>"
    )


def known_words(vocabulary: Vocabulary) -> str:
    """Every style, modifier and concept that a small base knows."""
    rows = [
        ("Styles", vocabulary.styles),
        ("Modifiers", vocabulary.modifiers),
        ("Things", vocabulary.concepts),
    ]
    items = "".join(f"<dt>{name}</dt><dd>{escape(', '.join(words))}</dd>" for name, words in rows)
    return f'<dl class="settings words">{items}</dl>'


def stage_empty() -> str:
    """What stands in the place of the picture before there is one."""
    return (
        '<div class="stage"><div class="frame vacant"><div class="empty">'
        "<strong>Your picture will appear here</strong>"
        "<span>Write what it should show, choose adapters if you like, and press Generate.</span>"
        "</div></div></div>"
    )


def stage_busy(step: Step | None, previous: Path | None, *, crisp: bool) -> str:
    """The picture before, dimmed, under the progress of the next one."""
    inside = _image(previous, "", crisp=crisp) if previous else ""
    kind = "frame busy" if previous else "frame vacant working"
    return f'<div class="stage"><div class="{kind}">{inside}</div>{progress(step)}</div>'


def stage_done(path: Path, record: Record, *, crisp: bool) -> str:
    """A finished picture and what took how long."""
    image = _image(path, record.recipe.prompt, crisp=crisp)
    actions = (
        _download(path, f"shira-{record.recipe.seed}.png", "Download PNG")
        + '<button type="button" class="act" data-action="reuse" '
        'title="Set the form to what made this picture">Use these settings</button>'
    )
    return (
        f'<div class="stage"><div class="frame">{image}</div>'
        f'{_facts(record)}<div class="actions">{actions}</div></div>'
    )


def progress(step: Step | None, before: str = "") -> str:
    """A bar with the step and the time, or the wait for the model."""
    if step is None:
        words, share = "Waiting for the model…", 0.0
    else:
        left = step.seconds / step.number * (step.total - step.number)
        words = f"Step {step.number} of {step.total} · {step.seconds:.1f} s · {left:.0f} s left"
        share = step.number / step.total
    return (
        '<div class="progress" role="status">'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div>'
        f"<span>{escape(before)}{words}</span></div>"
    )


def _image(path: Path, alt: str, *, crisp: bool) -> str:
    kind = ' class="crisp"' if crisp else ""
    return f'<img{kind} src="{escape(file_url(path))}" alt="{escape(alt)}">'


def _download(path: Path, name: str, words: str) -> str:
    url = escape(file_url(path))
    return f'<a class="act" href="{url}" download="{escape(name)}">{words}</a>'


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


def settings(record: Record) -> str:
    """Everything that made the picture, as a list."""
    recipe = record.recipe
    rows = [("Prompt", recipe.prompt)]
    if recipe.negative_prompt:
        rows.append(("Negative prompt", recipe.negative_prompt))
    rows += [
        ("Steps", str(recipe.steps)),
        ("Guidance", f"{recipe.guidance:g}"),
        ("Seed", str(recipe.seed)),
        ("Size", f"{recipe.width} × {recipe.height} px"),
        ("Sampler", record.sampler),
        ("Base", record.base),
    ]
    for use in record.adapters:
        rows.append(("Adapter", f"{use.name} at {use.strength:g} (file {use.sha256[:12]})"))
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="settings">{items}</dl>'


def footer() -> str:
    """The promise at the foot of the page."""
    return (
        '<footer class="foot">Everything stays on this machine: pictures in the outputs folder, '
        "each with its settings inside.</footer>"
    )
