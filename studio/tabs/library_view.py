"""The library in the form that its tab shows."""

from html import escape
from typing import Any

from shira_diffusion.cards import SPARSE
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container
from studio.library import ADAPTER_FILE, Entry, method_name
from studio.newwords import told
from studio.shelf.desk import Shelf
from studio.shelf.exports import Parcel
from studio.tabs.cards import by_title, size_words
from studio.tabs.fragments import file_url
from studio.tabs.widgets import binned
from studio.thumbnails import thumbnail_uri

_DENSITY = "shira.density"
_MASKS = {
    "rand": "at random (rand)",
    "struct": "rows and a diagonal (struct)",
    "wm": "the largest weights (wm)",
    "sara": "the smallest weights (sara)",
    "grad": "where the gradients are largest (grad)",
    "snip": "where weight times gradient is largest (snip)",
}


def shelf_value(shelf: Shelf, chosen: str, deleted: str = "") -> dict[str, Any]:
    """The value of `widgets.shelf`; `deleted` is the ticket of what was deleted last."""
    return {
        "cards": [_card(entry) for entry in by_title(shelf.library.entries)],
        "chosen": chosen,
        **binned(shelf.trash, deleted),
    }


def _card(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.label,
        "kind": entry.kind,
        "method": method_name(entry.info.method),
        "words": list(entry.info.trigger_words),
        "tags": list(entry.info.tags),
        "size": size_words(entry.stamp.size),
        "about": entry.info.description[:300],
        "thumbnail": "" if entry.problem else thumbnail_uri(entry.thumbnail),
        "problem": entry.problem,
    }


def leaf_empty() -> str:
    """What stands in the place of the details before an adapter is chosen."""
    return (
        '<div class="grid-empty empty"><strong>Choose an adapter</strong>'
        "<span>Its details, its card, and what can be done with it appear here.</span></div>"
    )


def leaf(entry: Entry) -> str:
    """All that is known about an adapter, as HTML."""
    info = entry.info
    uri = "" if entry.problem else thumbnail_uri(entry.thumbnail)
    letter = f'<span class="shelf-thumb">{escape(entry.title[:1].upper())}</span>'
    image = f'<img src="{uri}" alt="">' if uri else letter
    about = f"<p>{escape(info.description)}</p>" if info.description else ""
    head = (
        f'<div class="leaf-head">{image}<div><h3>{escape(entry.title)}</h3>'
        f'<p class="quiet">{escape(entry.name)}</p>{about}</div></div>'
    )
    problem = ""
    if entry.problem:
        problem = f'<div class="problem">It cannot be used: {escape(entry.problem)}</div>'
    return (
        f'<div class="leaf">{head}{problem}{_list(_facts(entry))}'
        f"{_folded('Training settings', _list(list(info.training.items())))}"
        f"{_folded('Card', _text(entry.card()))}</div>"
    )


def _facts(entry: Entry) -> list[tuple[str, str]]:
    info = entry.info
    rows = [
        ("Trigger words", ", ".join(info.trigger_words)),
        ("New word", told(entry)),
        ("Tags", ", ".join(info.tags)),
        ("Strength", f"{info.strength}, as its author suggests" if info.strength else ""),
        ("Method", method_name(info.method)),
        ("Mask", _MASKS.get(info.mask, info.mask)),
        ("Density", _density(entry)),
        ("Size", _size(entry)),
        ("Base", info.base_model),
        ("Author", info.author),
        ("Licence", info.license),
        ("Made", info.date),
        ("File's SHA-256", "" if entry.problem else entry.sha256()),
    ]
    return [row for row in rows if row[1]]


def _size(entry: Entry) -> str:
    if not entry.stamp.size:
        return ""
    size = size_words(entry.stamp.size)
    # Beside a LoRA of as many values the file looks too large.
    sparse = entry.info.method in SPARSE
    return f"{size}: its values, and where in the weights each of them stands" if sparse else size


def _density(entry: Entry) -> str:
    try:
        stated = container.read_header(entry.folder / ADAPTER_FILE).metadata.get(_DENSITY, "")
        return f"{float(stated):.2%} of the weights it touches" if stated else ""
    except (FormatError, ValueError):
        return ""


def _list(rows: list[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="settings">{items}</dl>' if items else ""


def _text(text: str) -> str:
    # Not drawn as Markdown: a card may come from anywhere, and its pictures from elsewhere.
    return f"<pre>{escape(text)}</pre>" if text.strip() else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>" if content else ""


def parcel(found: Parcel) -> dict[str, Any]:
    """The value of `widgets.delivery`."""
    return {
        "source": file_url(found.path),
        "name": found.path.name,
        "size": size_words(found.path.stat().st_size),
        "remark": found.remark,
    }
