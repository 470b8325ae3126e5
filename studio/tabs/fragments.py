"""Pieces of the page as HTML, pure functions; every text from outside is escaped here."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from studio.base import Base
from studio.infotext import Record
from studio.steps import Step
from studio.timing import Timing
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


def progress(step: Step | None, before: str = "") -> str:
    """A bar with the step and the time, or the wait for the model."""
    if step is None:
        words, share = "Waiting for the model…", 0.0
    else:
        left = f"{step.seconds_left:.0f} s left" if step.seconds_left >= 1 else "nearly done"
        words = f"Step {step.number} of {step.total} · {step.seconds:.1f} s · {left}"
        share = step.number / step.total
    return (
        '<div class="progress" role="status">'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div>'
        f"<span>{escape(before)}{words}</span></div>"
    )


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
        when = recipe.timing.get(use.name, Timing.ALWAYS)
        worked = "" if when == Timing.ALWAYS else f", {when}"
        rows.append(("Adapter", f"{use.name} at {use.strength:g}{worked} ({use.sha256[:12]})"))
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="settings">{items}</dl>'


def footer() -> str:
    """The promise at the foot of the page."""
    return (
        '<footer class="foot">Everything stays on this machine: pictures in the outputs folder, '
        "each with its settings inside.</footer>"
    )
