"""Everything that the Library tab works with, as one value."""

from dataclasses import dataclass
from pathlib import Path

from studio.library import AdapterLibrary, Entry
from studio.shelf.arrivals import Arrival, take_in
from studio.shelf.editing import Edit, edit, rename
from studio.shelf.exports import Exports
from studio.shelf.fit import BaseWeights
from studio.shelf.naming import free_name
from studio.shelf.trash import Discarded, Trash

TRASH = ".trash"


@dataclass(frozen=True)
class Shelf:
    """The library and all that changes it; names are looked up, never made into paths."""

    library: AdapterLibrary
    weights: BaseWeights
    trash: Trash
    exports: Exports

    @classmethod
    def of(cls, library: AdapterLibrary, weights: BaseWeights, outputs: Path) -> "Shelf":
        """The shelf of a studio; its trash is on the adapters' own disk."""
        return cls(library, weights, Trash(library.folder / TRASH), Exports(outputs / "exports"))

    def take_in(self, file: Path, told: str) -> Arrival:
        """Import a file that its owner calls `told`."""
        return take_in(file, told, self.library, self.weights)

    def take_upload(self, file: Path) -> Arrival:
        """Import a file that was sent here, and remove it, whatever came of it."""
        try:
            return self.take_in(file, file.name)
        finally:
            file.unlink(missing_ok=True)

    def edit(self, name: str, change: Edit) -> Entry:
        """Change what the adapter says about itself."""
        return edit(self.library, name, change)

    def rename(self, name: str, title: str) -> str:
        """Give it a new title and folder; return the new name."""
        return rename(self.library, name, title)

    def delete(self, name: str) -> Discarded:
        """Move the adapter's folder into the trash; broken ones too."""
        entry = self.library.listed(name)
        item = self.trash.discard(entry.folder, entry.title)
        self.library.rescan()
        return item

    def undo(self, ticket: str) -> str:
        """Bring a deleted adapter back, under another name if its own is taken; return the name."""
        name = free_name(self.trash.find(ticket).name, self.library.taken())
        self.trash.restore(ticket, self.library.folder / name)
        self.library.rescan()
        return name
