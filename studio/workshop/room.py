"""Everything that the Train tab works with, as one value."""

from dataclasses import dataclass
from pathlib import Path

from studio.library import AdapterLibrary
from studio.workshop.keeper import Keeper
from studio.workshop.order import Places
from studio.workshop.runs import Trainings
from studio.workshop.sets import ImageSets


@dataclass(frozen=True)
class Workshop:
    """Image sets, trainings, where they read and write, and who keeps them going."""

    sets: ImageSets
    trainings: Trainings
    places: Places
    keeper: Keeper


def open_workshop(
    base: str, library: AdapterLibrary, outputs: Path, device: str | None
) -> Workshop:
    """Find sets and trainings below `outputs` and go on with those that wait.

    `base` is what the studio was started with: a folder, a file or a hub id.
    """
    here = Path(base).expanduser()
    places = Places(
        base=str(here.resolve()) if here.exists() else base,
        device=device or "auto",
        adapters=library.folder,
        cache=outputs / "trainings" / "cache",
    )
    trainings = Trainings(outputs / "trainings", places)
    library.reserve(trainings.names)
    keeper = Keeper(trainings, library.rescan)
    return Workshop(ImageSets(outputs / "sets"), trainings, places, keeper)
