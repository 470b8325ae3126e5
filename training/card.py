"""The card of an adapter: what it is and how to use it, as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from shira_diffusion import AdapterInfo
from training.config import SPARSE

_KINDS = {
    "shira": "sparse high rank (SHiRA)",
    "lora": "LoRA",
    "dora": "DoRA",
    "symlora": "symmetric low rank (SymLoRA, as a LoRA)",
    "shira-dora": "sparse high rank (SHiRA over a DoRA)",
}
CREDITS = ("CREDITS.md", "CREDITS.txt", "CREDITS", "LICENSE.md", "LICENSE.txt", "LICENSE")


def write_card(info: AdapterInfo, *, prompts: Sequence[str], credit: str) -> str:
    """Return the card's text."""
    parts = [
        f"# {info.title}",
        info.description or f"A {_KINDS[info.method]} adapter for {info.base_model}.",
        "![a picture drawn with it](thumbnail.png)",
        _triggers(info),
        f"## Use\nIn the studio it is listed as `{info.name}`. In Python, with `pipe` a "
        f"`StableDiffusionXLPipeline` of {info.base_model}:\n{_snippet(info)}",
        _prompts(prompts),
        _table("Training", info),
        f"## Data\n{text}" if (text := _without_heading(credit)) else "",
        f"## Licence\n{info.license}" if info.license else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_credit(folder: Path) -> str:
    """Return the credit or licence text that lies in a data folder, "" if there is none."""
    paths = (folder / name for name in CREDITS)
    found = next((path for path in paths if path.is_file()), None)
    return found.read_text(encoding="utf-8", errors="replace") if found else ""


def _without_heading(text: str) -> str:
    """Drop the title of a text that goes under a heading of the card."""
    first, _, rest = text.strip().partition("\n")
    return rest.strip() if first.startswith("# ") else text.strip()


def _triggers(info: AdapterInfo) -> str:
    words = ", ".join(f"`{word}`" for word in info.trigger_words)
    return f"Trigger words: {words}" if words else ""


def _snippet(info: AdapterInfo) -> str:
    folder = f"adapters/{info.name}"
    file = f"{folder}/adapter.safetensors"
    lines = [f'pipe.load_lora_weights("{file}")']
    if info.method in SPARSE:
        lines = [
            "from shira_diffusion import Adapter, AdapterSwitcher",
            "switcher = AdapterSwitcher(pipe)",
            f'switcher.add("{info.name}", Adapter.load("{file}"))',
            f'switcher.set({{"{info.name}": 1.0}})',
        ]
    return "\n".join(["```python", *_new_word(info, folder), *lines, "```"])


def _new_word(info: AdapterInfo, folder: str) -> list[str]:
    """Return the lines that teach the pipeline a word it does not know."""
    word = info.training.get("new_token")
    if not word:
        return []
    return [
        "from safetensors.torch import load_file",
        f'words = load_file("{folder}/embeddings.safetensors")',
        f'pipe.load_textual_inversion(words["clip_l"], token="{word}",',
        "    text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
        f'pipe.load_textual_inversion(words["clip_g"], token="{word}",',
        "    text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
    ]


def _prompts(prompts: Sequence[str]) -> str:
    return "\n".join(["## Prompts to try", *(f"- {prompt}" for prompt in prompts)])


def _table(title: str, info: AdapterInfo) -> str:
    rows = [f"| {key} | {value} |" for key, value in info.training.items()]
    return "\n".join([f"## {title}", "| setting | value |", "|---|---|", *rows])
