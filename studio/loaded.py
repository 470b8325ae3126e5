"""The adapters that a switcher holds, kept the same as the library's files."""

from collections.abc import Mapping
from dataclasses import dataclass

from shira_diffusion import AdapterSwitcher
from studio.library import AdapterLibrary, Entry, Stamp


@dataclass(frozen=True)
class _Held:
    """Which version of a file is in memory, and that file's hash."""

    stamp: Stamp
    sha256: str


class LoadedAdapters:
    """Loads adapters when they are first used; how much memory they take is the switcher's matter.

    Calls must not overlap.
    """

    def __init__(self, switcher: AdapterSwitcher, library: AdapterLibrary) -> None:
        self._switcher = switcher
        self._library = library
        self._held: dict[str, _Held] = {}

    def bring(self, entries: Mapping[str, Entry]) -> dict[str, str]:
        """See to it that these adapters are in the switcher and return the hashes of their files.

        Those that were replaced are read again, those that left the library are let go.
        """
        for name in [name for name in self._held if not self._library.knows(name)]:
            self._drop(name)
        for name, entry in entries.items():
            held = self._held.get(name)
            if held is None or held.stamp != entry.stamp:
                adapter = self._library.load(entry)
                self._drop(name)
                self._switcher.add(name, adapter)
                self._held[name] = _Held(entry.stamp, entry.sha256())
        return {name: self._held[name].sha256 for name in entries}

    def _drop(self, name: str) -> None:
        if self._held.pop(name, None):
            self._switcher.remove(name)
