"""The card of an adapter: what it is and how to use it, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shira_diffusion.adapter import AdapterInfo

_KINDS = {
    "shira": "sparse high rank (SHiRA)",
    "lora": "LoRA",
    "dora": "DoRA",
    "symlora": "symmetric low rank (SymLoRA, as a LoRA)",
    "shira-dora": "sparse high rank (SHiRA over a DoRA)",
}
SPARSE = frozenset({"shira", "shira-dora"})
_TRIGGERS = "Trigger words:"
# The description of one that has none.
_WITHOUT = re.compile(r"A .+ adapter for .+\.")
FILE = "adapter.safetensors"
EMBEDDINGS = "embeddings.safetensors"
"""Beside the adapter: those of a word that it taught the text encoders."""


def write_card(
    info: AdapterInfo,
    *,
    prompts: Sequence[str] = (),
    credit: str = "",
    hub_id: str = "",
    thumbnail: str = "thumbnail.png",
) -> str:
    """The card's text.

    `credit` says whose the training images are, `hub_id` where on the Hugging Face hub it lies
    ("": in the studio's folder); `thumbnail` is a path beside the card, "" for none.
    """
    credit = _without_heading(credit)
    parts = [
        f"# {info.title or info.name}",
        info.description or _description(info),
        f"![a picture drawn with it]({thumbnail})" if thumbnail else "",
        _triggers(info),
        f"## Use\n{_use(info, hub_id)}",
        "\n".join(["## Prompts to try", *(f"- {prompt}" for prompt in prompts)]) if prompts else "",
        _table("Training", info),
        f"## Data\n{credit}" if credit else "",
        f"## Licence\n{info.license}" if info.license else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _description(info: AdapterInfo) -> str:
    kind = _KINDS.get(info.method, info.method)
    return f"A {kind} adapter for {info.base_model or 'an unknown base'}."


def _without_heading(text: str) -> str:
    """A text without its title, for it goes under a heading of the card."""
    first, _, rest = text.strip().partition("\n")
    return rest.strip() if first.startswith("# ") else text.strip()


def _triggers(info: AdapterInfo) -> str:
    words = ", ".join(f"`{word}`" for word in info.trigger_words)
    return f"{_TRIGGERS} {words}" if words else ""


def renewed(card: str, info: AdapterInfo, *, hub_id: str) -> str:
    """A card with title, trigger words, licence and section "Use" as they are now.

    The description is too, where it was the one that cards have without any. What else a person
    wrote into it stays. `hub_id` as for `write_card`.
    """
    head, *sections = card.split("\n## ")
    wanted = {"Use": _use(info, hub_id), "Licence": info.license}
    kept = []
    for section in sections:
        heading, _, text = section.partition("\n")
        new = wanted.pop(heading, "")
        # A licence may be told at greater length than by its name.
        kept.append(section if not new or new in text else f"{heading}\n{new}")
    if wanted.get("Licence"):
        kept.append(f"Licence\n{info.license}")
    return "\n\n## ".join(part.rstrip("\n") for part in [_head(head, info), *kept]) + "\n"


def _head(head: str, info: AdapterInfo) -> str:
    """What stands above the first section, renewed paragraph by paragraph."""
    paragraphs = [text for text in head.strip("\n").split("\n\n") if text]
    told = any(text.startswith(_TRIGGERS) for text in paragraphs)
    kept = [_paragraph(text, info) for text in paragraphs] + ([] if told else [_triggers(info)])
    return "\n\n".join(text for text in kept if text)


def _paragraph(text: str, info: AdapterInfo) -> str:
    if text.startswith("# "):
        return f"# {info.title or info.name}"
    if text.startswith(_TRIGGERS):
        return _triggers(info)
    return (info.description or text) if _WITHOUT.fullmatch(text) else text


def _use(info: AdapterInfo, hub_id: str) -> str:
    studio = "" if hub_id else f"In the studio it is listed as `{info.name}`. "
    base = f" of {info.base_model}" if info.base_model else ""
    lines = "\n".join(["```python", *_snippet(info, hub_id), "```"])
    return f"{studio}In Python, with `pipe` a `StableDiffusionXLPipeline`{base}:\n{lines}"


def _snippet(info: AdapterInfo, hub_id: str) -> list[str]:
    return [*_new_word(info, hub_id), *_loading(info, hub_id)]


def _new_word(info: AdapterInfo, hub_id: str) -> list[str]:
    """The lines that teach the text encoders a word whose embeddings lie beside the adapter."""
    word = info.training.get("new_token", "")
    if not word:
        return []
    file = f'"adapters/{info.name}/{EMBEDDINGS}"'
    lines = ["from safetensors.torch import load_file"]
    if hub_id:
        lines.append("from huggingface_hub import hf_hub_download")
        file = f'hf_hub_download("{hub_id}", "{EMBEDDINGS}")'
    return [
        *lines,
        f"words = load_file({file})",
        f'pipe.load_textual_inversion(words["clip_l"], token="{word}",',
        "    text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
        f'pipe.load_textual_inversion(words["clip_g"], token="{word}",',
        "    text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        "# Else SDXL pools at the new word, whose id is the largest, not at the prompt's end.",
        "pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id",
    ]


def _loading(info: AdapterInfo, hub_id: str) -> list[str]:
    if info.method not in SPARSE:
        where = f'"{hub_id}", weight_name="{FILE}"' if hub_id else f'"{_local(info)}"'
        return [f"pipe.load_lora_weights({where})"]
    if hub_id:
        return [
            "from shira_diffusion.pipeline import load_adapters",
            f'switcher = load_adapters(pipe, "{hub_id}", strength=1.0)',
            "switcher.clear()  # the base again, bit for bit",
        ]
    return [
        "from shira_diffusion import Adapter, AdapterSwitcher",
        "switcher = AdapterSwitcher(pipe)",
        f'switcher.add("{info.name}", Adapter.load("{_local(info)}"))',
        f'switcher.set({{"{info.name}": 1.0}})',
    ]


def _local(info: AdapterInfo) -> str:
    return f"adapters/{info.name}/{FILE}"


def _table(title: str, info: AdapterInfo) -> str:
    rows = [f"| {key} | {value} |" for key, value in info.training.items()]
    return "\n".join([f"## {title}", "| setting | value |", "|---|---|", *rows]) if rows else ""
