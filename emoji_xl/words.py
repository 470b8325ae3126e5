"""The list of words that a base knows, for whoever writes prompts: `words.json` in its folder."""

import json
import re
from collections import defaultdict
from pathlib import Path

from emoji_xl.captions import WITH_STYLE, WITHOUT_STYLE
from emoji_xl.concepts import TRAIN_STYLES
from emoji_xl.modifiers import MODIFIERS

MOST_ALIKE = 4
"""A tag of more concepts than this is too wide to suggest anything."""


def write_words(manifest: Path, file: Path) -> None:
    """Write concepts, styles, modifiers, the captions' other words, and tags of few concepts."""
    listed = json.loads(manifest.read_text())
    concepts = sorted({p["concept"] for p in listed["pictures"] if p["split"] == "train"})
    templates = " ".join(WITH_STYLE + WITHOUT_STYLE)
    others = set(re.findall(r"[a-z]+", re.sub(r"{\w+}", "", templates))) | {"a", "an"}
    alike = defaultdict(list)
    for concept in concepts:
        for tag in listed["tags"][concept]:
            alike[tag.lower()].append(concept)
    words = {
        "concepts": concepts,
        "styles": list(TRAIN_STYLES),
        "modifiers": list(MODIFIERS),
        "others": sorted(others),
        "alike": {tag: found for tag, found in sorted(alike.items()) if len(found) <= MOST_ALIKE},
    }
    file.write_text(json.dumps(words, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
