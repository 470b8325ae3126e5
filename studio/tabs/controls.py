"""Controls that the tabs have in common."""

import random
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError
from studio.base import Base
from studio.recipe import MAX_GUIDANCE, MAX_SEED, MAX_STEPS

FOLLOW = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""For listeners that watch a job or may fail: any number at once, the worker sees to the order.

Gradio shows the words of an error only of listeners that go through its queue.
"""

PAGE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For listeners that only touch the page and do not fail: they wait for nothing."""


SHELF = {"concurrency_id": "shelf", "concurrency_limit": 2}
"""For listeners that read or write adapters' files."""

BROWSER_KEY = "shira-studio"
"""Settings in the browser are no secret: with a key of their own they outlive the studio."""


class Knobs(NamedTuple):
    """The numbers of a picture, in the order that handlers take them."""

    steps: gr.Slider
    guidance: gr.Slider
    size: gr.Dropdown
    seed: gr.Number
    fresh_seed: gr.Checkbox


def knobs(base: Base, *, fresh: bool) -> Knobs:
    """Lay out steps, guidance, size (if the base has a choice) and seed."""
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=140,
            info="The same seed and settings give the same picture.",
        )  # fmt: skip
        fresh_seed = gr.Checkbox(fresh, label="New seed each time", min_width=140, container=False)
    with gr.Row():
        steps = gr.Slider(
            1, MAX_STEPS, base.steps, step=1, label="Steps", min_width=200,
            info="More steps take longer and show finer detail.",
        )  # fmt: skip
        guidance = gr.Slider(
            0, MAX_GUIDANCE, base.guidance, step=0.5, label="Guidance", min_width=200,
            info="How strictly the picture follows the prompt.",
        )  # fmt: skip
    names = [size_name(size) for size in base.sizes]
    size = gr.Dropdown(
        names, value=names[0], label="Size", visible=len(names) > 1, filterable=False
    )
    return Knobs(steps, guidance, size, seed, fresh_seed)


class RunButtons(NamedTuple):
    """Start and stop: one of them is there at a time."""

    start: gr.Button
    stop: gr.Button


def run_buttons(words: str, name: str) -> RunButtons:
    """Lay out the start button and, in its place while a job runs, the stop button."""
    start = gr.Button(words, variant="primary", size="lg", elem_id=f"{name}-start")
    stop = gr.Button("Stop", variant="stop", size="lg", visible=False, elem_id=f"{name}-stop")
    return RunButtons(start, stop)


def showing(*, running: bool) -> tuple[Any, Any]:
    """Updates of `RunButtons` for a job that runs, or none."""
    return gr.update(visible=not running), gr.update(visible=running)


def size_name(size: tuple[int, int]) -> str:
    """A size as the page writes it."""
    return f"{size[0]} × {size[1]}"


def read_size(base: Base, name: str | None) -> tuple[int, int]:
    """The size that `size_name` wrote; the native one for none."""
    sizes = {size_name(size): size for size in base.sizes}
    if name and name not in sizes:
        raise SettingError(f"{base.name} has no size {name!r}; it makes {', '.join(sizes)}.")
    return sizes[name] if name else base.native


def choose_seed(seed: float | None, *, fresh: bool) -> int:
    """The seed to use; an empty field counts as 0."""
    return random.randint(0, MAX_SEED) if fresh else int(seed or 0)


def with_word(prompt: str | None, word: str) -> str:
    """The prompt with a trigger word at its end, unless it has it already."""
    prompt, word = (prompt or "").strip(), word.strip()
    if word.lower() in prompt.lower():
        return prompt
    return f"{prompt.rstrip(', ')}, {word}" if prompt else word
