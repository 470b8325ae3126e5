"""The card of an adapter: what it is and how to use it, as Markdown."""

from __future__ import annotations

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
    return f"Trigger words: {words}" if words else ""


def renewed(card: str, info: AdapterInfo, *, hub_id: str) -> str:
    """A card that was written for the studio, for readers on the hub: another section "Use"."""
    head, *sections = card.split("\n## ")
    use = f"Use\n{_use(info, hub_id)}\n"
    kept = [use if one.startswith("Use\n") else one for one in sections]
    return "\n## ".join([head, *kept])


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
