"""The studio as a whole, without a page: what `app.py` builds and the tabs call."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from shira_diffusion.components import component_modules
from shira_diffusion.errors import SettingError
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.pipeline import load_base
from studio.engine import Engine
from studio.library import AdapterLibrary
from studio.pictures import PictureStore
from studio.vocabulary import Vocabulary
from studio.watching import StopFlags
from studio.workshop.room import Workshop, open_workshop


@dataclass(frozen=True)
class Studio:
    """One engine, the adapters it may use, and the folder its pictures go to."""

    engine: Engine
    library: AdapterLibrary
    pictures: PictureStore
    comparisons: Path
    outputs: Path
    stops: StopFlags
    workshop: Workshop


def open_studio(base: str, adapters: Path, outputs: Path, *, device: str | None = None) -> Studio:
    """Load the base from a folder, a file or a hub id; raises `ShiraError` if it cannot be.

    Before that the folders below `outputs` are made, as a base may take minutes.
    """
    outputs = outputs.absolute()
    pictures, comparisons = outputs / "pictures", outputs / "comparisons"
    for folder in (pictures, comparisons):
        _make_writable(folder)
    pipe = load_base(base, device=device)
    modules = component_modules(pipe)
    library = AdapterLibrary(adapters, {part: fingerprint(one) for part, one in modules.items()})
    return Studio(
        engine=Engine(
            pipe,
            library,
            name=Path(base).resolve().name.removesuffix(".safetensors"),
            vocabulary=Vocabulary.read(Path(base).expanduser()),
        ),
        library=library,
        pictures=PictureStore(pictures),
        comparisons=comparisons,
        outputs=outputs,
        stops=StopFlags(),
        workshop=open_workshop(base, library, outputs, device),
    )


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            f"nothing can be written into {folder} ({error.strerror}); choose another --outputs"
        ) from error
