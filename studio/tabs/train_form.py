"""The form of the Train tab: what is asked, what a preset fills in, and the order it makes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError
from studio.service import Studio
from studio.shelf.naming import folder_name, free_name, plain
from studio.twins import TWIN_ENDING
from studio.workshop.captions import CONCEPT, STYLE
from studio.workshop.order import Order, number, read_extras
from studio.workshop.presets import METHODS, Preset, offered, read_presets

KINDS = [("A style", STYLE), ("One thing (a concept)", CONCEPT)]


class Form(NamedTuple):
    """What the person sets, in the order that handlers take it."""

    title: Any
    kind: Any
    trigger: Any
    preset: Any
    method: Any
    steps: Any
    lr: Any
    density: Any
    seed: Any
    sample_every: Any
    sample_prompts: Any
    description: Any
    extras: Any


class Numbers(NamedTuple):
    """The fields that a preset fills in."""

    steps: Any
    lr: Any
    density: Any
    sample_every: Any


@dataclass(frozen=True)
class Presets:
    """The presets that go with the base in use."""

    found: tuple[Preset, ...]
    small: bool

    @classmethod
    def of(cls, studio: Studio) -> "Presets":
        """Those for the base of a studio."""
        return cls(read_presets(), studio.engine.base.is_small)

    def choices(self, kind: str) -> list[tuple[str, str]]:
        """Title and name of those for a style or a concept."""
        return [(one.title, one.name) for one in offered(self.found, small=self.small, kind=kind)]

    def find(self, name: str | None) -> Preset:
        """The preset of this name; raises `SettingError`."""
        for preset in self.found:
            if preset.name == name:
                return preset
        raise SettingError("Choose a preset.")

    def numbers(self, name: str, method: str) -> Numbers:
        """What the preset's fields hold for a method."""
        preset = self.find(name)
        return Numbers(*(preset.value(key, method) for key in Numbers._fields))


def read_order(studio: Studio, presets: Presets, form: Form) -> Order:
    """The order that the form makes; raises `SettingError` with what is missing."""
    title = plain(form.title, 80)
    if not title:
        raise SettingError("Give the adapter a name: it is what the library lists it as.")
    if form.method not in METHODS or form.kind not in (STYLE, CONCEPT):
        raise SettingError("Choose a method, and whether it is a style or one thing.")
    whole = {
        key: None if (value := number(getattr(form, key), words, low=low)) is None else int(value)
        for key, words, low in (
            ("steps", "The number of steps", 1),
            ("seed", "The seed", 0),
            ("sample_every", "Steps between samples", 0),
        )
    }
    prompts = (plain(line) for line in (form.sample_prompts or "").splitlines())
    return Order(
        title=title,
        name=_name(studio, title, form.method),
        kind=form.kind,
        preset=presets.find(form.preset).name,
        method=form.method,
        trigger=plain(form.trigger, 80),
        lr=number(form.lr, "The learning rate"),
        density=number(form.density, "The density"),
        sample_prompts=tuple(line for line in prompts if line),
        description=plain(form.description),
        extras=read_extras(form.extras),
        **whole,
    )


def _name(studio: Studio, title: str, method: str) -> str:
    """A folder that no adapter has and no other training is about to make."""
    ending = "" if method == "shira" else f"-{method}"
    wanted = folder_name(title).removesuffix(TWIN_ENDING) or "adapter"
    return free_name(wanted, studio.library.taken(), ending)


def filled(order: Order, presets: Presets) -> Form:
    """The form as it was for `order`, to be changed and started anew."""
    numbers = presets.numbers(order.preset, order.method)
    return Form(
        title=order.title,
        kind=order.kind,
        trigger=order.trigger,
        preset=gr.update(choices=presets.choices(order.kind), value=order.preset),
        method=order.method,
        steps=order.steps or numbers.steps,
        lr=order.lr if order.lr is not None else numbers.lr,
        density=order.density if order.density is not None else numbers.density,
        seed=order.seed or 0,
        sample_every=numbers.sample_every if order.sample_every is None else order.sample_every,
        sample_prompts="\n".join(order.sample_prompts),
        description=order.description,
        extras="\n".join(f"{key}={value}" for key, value in order.extras.items()),
    )


def lay_out(presets: Presets) -> Form:
    """Lay out the form."""
    choices = presets.choices(STYLE)
    first = choices[0][1] if choices else None
    numbers = presets.numbers(first, "shira") if first else Numbers(None, None, None, None)
    title = gr.Textbox(label="Name of the adapter", placeholder="My ink", elem_id="train-title")
    kind = gr.Radio(KINDS, value=STYLE, label="What is it?", elem_id="train-kind")
    trigger = gr.Textbox(
        label="Trigger word", placeholder="ink style", elem_id="train-trigger",
        info="A word that calls it, which stands in every caption.",
    )  # fmt: skip
    preset = gr.Dropdown(
        choices, value=first, label="Preset", filterable=False, elem_id="train-preset"
    )
    method = gr.Dropdown(
        [(words, name) for name, words in METHODS.items()], value="shira", label="Method",
        filterable=False, elem_id="train-method",
    )  # fmt: skip
    return Form(title, kind, trigger, preset, method, *_more(numbers))


def _more(numbers: Numbers) -> tuple[Any, ...]:
    """The fields that most people leave as they are, in the order of `Form`."""
    with gr.Accordion("More settings", open=False, elem_id="train-more"):
        with gr.Row():
            steps = gr.Number(numbers.steps, label="Steps", precision=0, minimum=1, min_width=120)
            lr = gr.Number(numbers.lr, label="Learning rate", minimum=0, step=1e-4, min_width=120)
        with gr.Row():
            density = gr.Number(
                numbers.density, label="Density", minimum=0, maximum=1, step=0.01, min_width=120,
                info="Share of the weights that is trained.",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
        every = gr.Number(
            numbers.sample_every, label="Steps between samples", precision=0, minimum=0,
            info="0 draws them at the end only. Each costs some seconds.",
        )  # fmt: skip
        prompts = gr.Textbox(
            label="Sample prompts", lines=2, max_lines=6, info="One a line; else the first caption."
        )
        description = gr.Textbox(label="Description", info="One sentence for its card.")
        extras = gr.Textbox(
            label="Further settings", lines=2, max_lines=8, placeholder="batch=2\nflip=true",
            info="key=value, one a line, as docs/studio-train.md says.",
        )  # fmt: skip
    return steps, lr, density, seed, every, prompts, description, extras
