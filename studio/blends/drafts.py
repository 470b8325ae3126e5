"""Blends on their way: files that can be tried before they are in the library, then kept there."""

import dataclasses
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from shira_diffusion import Adapter, AdapterInfo
from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.errors import SettingError
from studio.blends.account import Account
from studio.library import ADAPTER_FILE, CARD_FILE, THUMBNAIL_FILE, AdapterLibrary, Entry
from studio.pictures import is_name, new_name, write_text
from studio.shelf.naming import folder_name, free_name, plain, words
from studio.thumbnails import CARD_SIDE, write_thumbnail

PREFIX = "blend/"
"""Drafts are known to the library by names that no folder can have."""
KEPT = 24
ACCOUNT_FILE = "blend.json"
_GONE = "This blend is no longer there: press Blend again."


@dataclass(frozen=True)
class Draft:
    """A blend that is not in the library yet."""

    name: str
    entry: Entry

    @property
    def folder(self) -> str:
        """The name of its folder among the drafts."""
        return self.name.removeprefix(PREFIX)


class Drafts:
    """The drafts in `folder`; the newest stay for a while, restarts included."""

    def __init__(self, folder: Path, library: AdapterLibrary) -> None:
        self._folder = folder
        self._library = library
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._all()[:KEPT]:
            library.lend(PREFIX + path.name, path)

    def keep(self, adapter: Adapter, account: Account, embeddings: Path | None = None) -> Draft:
        """Write a draft and make it known to the library; the oldest beyond `KEPT` go.

        The folder is there as a whole or not at all. `embeddings` is the file of the word that it
        takes over from one of its parts.
        """
        place = self._folder / new_name()
        partial = place.with_name(f".{place.name}.partial")
        try:
            adapter.save(partial / ADAPTER_FILE)
            if embeddings is not None:
                shutil.copyfile(embeddings, partial / EMBEDDINGS)
            write_text(account.to_json(), partial / ACCOUNT_FILE)
            partial.rename(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self._all()[KEPT:]:
            self._library.unlend(PREFIX + old.name)
            shutil.rmtree(old, ignore_errors=True)
        return Draft(PREFIX + place.name, self._library.lend(PREFIX + place.name, place))

    def find(self, name: str) -> Draft:
        """The draft of this name; raises `SettingError` if it is gone."""
        folder = self._folder / name.removeprefix(PREFIX)
        if not is_name(folder.name) or not (folder / ADAPTER_FILE).is_file():
            raise SettingError(_GONE)
        return Draft(name, self._library.find(name))

    def account(self, draft: Draft) -> Account:
        """What was written down of a draft when it was made; raises `SettingError`."""
        try:
            text = (self._folder / draft.folder / ACCOUNT_FILE).read_text(encoding="utf-8")
            return Account.from_json(text)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SettingError(_GONE) from error

    def publish(self, draft: Draft, title: str, triggers: str, picture: Path | None) -> str:
        """Put a draft into the library under a name made from `title`; return the name.

        Trigger words are given between commas. The folder is there as a whole or not at all.
        """
        title = plain(title, 80)
        if not title:
            raise SettingError("The title is empty: give the blend a name.")
        name = free_name(folder_name(title), self._library.taken())
        adapter = self._library.load(draft.entry)
        info = dataclasses.replace(
            adapter.info, name=name, title=title, trigger_words=words(triggers)
        )
        folder = self._library.folder / name
        partial = folder.with_name(f".{name}.{secrets.token_hex(6)}.partial")
        try:
            Adapter(adapter.deltas, info).save(partial / ADAPTER_FILE)
            if (draft.entry.folder / EMBEDDINGS).is_file():
                shutil.copyfile(draft.entry.folder / EMBEDDINGS, partial / EMBEDDINGS)
            thumbnail = partial / THUMBNAIL_FILE
            drawn = picture is not None and write_thumbnail(picture, thumbnail, CARD_SIDE)
            card = _card(info, has_picture=drawn)
            (partial / CARD_FILE).write_text(card, encoding="utf-8")
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._library.rescan()
        return name

    def _all(self) -> list[Path]:
        """The folders of drafts, newest first."""
        return sorted((path for path in self._folder.iterdir() if is_name(path.name)), reverse=True)


def _card(info: AdapterInfo, *, has_picture: bool) -> str:
    parts = [f"# {info.title}", "A blend of sparse adapters, made in SHiRA Studio."]
    if has_picture:
        parts.append(f"![a picture drawn with it]({THUMBNAIL_FILE})")
    if info.trigger_words:
        parts.append("Trigger words: " + ", ".join(f"`{word}`" for word in info.trigger_words))
    facts = [("made of", info.training.get("fused", "")), ("how", info.training.get("blend", ""))]
    rows = [f"| {key} | {value.replace('|', '/')} |" for key, value in facts if value]
    parts.append("## Blend\n\n" + "\n".join(("| setting | value |", "|---|---|", *rows)))
    if info.license:
        parts.append(f"## Licence\n\n{info.license}")
    return "\n\n".join(parts) + "\n"
