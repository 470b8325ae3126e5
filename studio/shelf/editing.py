"""Edit and rename: the file itself says what an adapter is, so that is where it is changed."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from shira_diffusion import AdapterInfo, formats
from shira_diffusion.cards import renewed
from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.relabel import relabel
from studio.library import ADAPTER_FILE, CARD_FILE, AdapterLibrary, Entry
from studio.shelf.naming import folder_name, free_name, plain, words
from studio.twins import LORA, TWIN_ENDING

MIN_STRENGTH, MAX_STRENGTH = -1.0, 2.0


@dataclass(frozen=True)
class Edit:
    """What can be changed about an adapter; `strength` 0 gives no hint."""

    title: str
    trigger_words: tuple[str, ...]
    tags: tuple[str, ...]
    description: str
    strength: float

    @classmethod
    def read(
        cls, title: str, triggers: str, tags: str, description: str, strength: float | None
    ) -> "Edit":
        """From the texts of a form; raises `SettingError`."""
        name, hint = plain(title, 80), strength or 0.0
        if not name:
            raise SettingError("The title is empty: give the adapter a name.")
        if not MIN_STRENGTH <= hint <= MAX_STRENGTH:
            raise SettingError(
                f"The strength {hint:g} is outside of {MIN_STRENGTH:g} to {MAX_STRENGTH:g}."
            )
        return cls(name, words(triggers), words(tags), plain(description), hint)

    def of(self, info: AdapterInfo) -> AdapterInfo:
        """`info` as it is after the edit."""
        return dataclasses.replace(
            info,
            title=self.title,
            trigger_words=self.trigger_words,
            tags=self.tags,
            description=self.description,
            strength=f"{self.strength:g}" if self.strength else "",
        )


def edit(library: AdapterLibrary, name: str, change: Edit) -> Entry:
    """Write the change into the adapter's file and card; nothing is changed where that fails."""
    entry = library.find(name)
    _rewrite(entry.folder, entry.info, change.of(entry.info))
    library.rescan()
    return library.find(name)


def rename(library: AdapterLibrary, name: str, title: str) -> str:
    """Give the adapter a new title and the folder that goes with it; return the new name.

    Its LoRA twin, as `AdapterLibrary.twin_of` knows it, goes along, so that Compare still pairs
    them. Where one of them cannot be renamed, both stay as they were.
    """
    title = plain(title, 80)
    if not title:
        raise SettingError("The title is empty: give the adapter a name.")
    entry = library.find(name)
    twin = library.twin_of(name)
    ending = TWIN_ENDING if entry.is_twin else ""
    own = {name, twin.name if twin else name}
    taken = library.taken() - own
    wanted = folder_name(title)
    wanted = wanted.removesuffix(TWIN_ENDING) if ending or entry.info.method != LORA else wanted
    pairs = _Pairs(taken)
    new = name if wanted + ending == name else free_name(wanted or "adapter", pairs, ending)
    moves = [(entry, new, title)]
    if twin:
        moves.append((twin, new + TWIN_ENDING, f"{title} (LoRA)"))
    _move_all(moves)
    library.rescan()
    return new


@dataclass(frozen=True)
class _Pairs:
    """Names that are taken, by an adapter or by the twin of one."""

    taken: set[str]

    def __contains__(self, name: object) -> bool:
        return name in self.taken or f"{name}{TWIN_ENDING}" in self.taken


def _move_all(moves: list[tuple[Entry, str, str]]) -> None:
    done: list[tuple[Entry, Path]] = []
    try:
        for entry, name, title in moves:
            folder = entry.folder.with_name(name)
            if folder != entry.folder:
                entry.folder.rename(folder)
            done.append((entry, folder))
            _rewrite(folder, entry.info, dataclasses.replace(entry.info, name=name, title=title))
    except (OSError, ShiraError) as error:
        for entry, folder in reversed(done):
            _rewrite(folder, formats.read_info(folder / ADAPTER_FILE), entry.info)
            folder.rename(entry.folder)
        raise SettingError(f"It cannot be renamed: {error}") from error


def _rewrite(folder: Path, before: AdapterInfo, after: AdapterInfo) -> None:
    if after == before:
        return
    path = folder / ADAPTER_FILE
    fields = (field.name for field in dataclasses.fields(AdapterInfo))
    changes = {key: getattr(after, key) for key in fields}
    # It reads the file whole before: a damaged one does not get a fresh checksum.
    relabel(path, path, changes, {})
    card = folder / CARD_FILE
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        partial = folder / f".{CARD_FILE}.partial"
        partial.write_text(retold(text, before, after), encoding="utf-8")
        partial.replace(card)


def retold(card: str, before: AdapterInfo, after: AdapterInfo) -> str:
    """The card with title, description, trigger words and the section on use as they are now.

    What else a person wrote into it stays.
    """
    lines = card.splitlines()
    old_title, new_title = f"# {before.title or before.name}", f"# {after.title or after.name}"
    if old_title in lines:
        lines[lines.index(old_title)] = new_title
    _replace_triggers(lines, after)
    if before.description and before.description in lines:
        lines[lines.index(before.description)] = after.description
    return renewed("\n".join(lines) + "\n", after, hub_id="")


def _replace_triggers(lines: list[str], after: AdapterInfo) -> None:
    told = ", ".join(f"`{word}`" for word in after.trigger_words)
    places = [place for place, line in enumerate(lines) if line.startswith("Trigger words:")]
    if places and told:
        lines[places[0]] = f"Trigger words: {told}"
    elif places:
        del lines[places[0]]
    elif told and lines:
        lines[1:1] = ["", f"Trigger words: {told}"]
