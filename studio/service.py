"""The studio as a whole, without a page: what `app.py` builds and the tabs call."""

import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from shira_diffusion.components import component_modules
from shira_diffusion.errors import SettingError
from shira_diffusion.fingerprint import fingerprint
from studio import making
from studio.blends import runner as fusing
from studio.blends.drafts import Drafts
from studio.engine import Engine
from studio.grids import runner
from studio.grids.store import GridStore
from studio.jobs import JobStore
from studio.judges import emoji
from studio.library import AdapterLibrary
from studio.machine import Machine
from studio.pictures import PictureStore
from studio.shelf.desk import Shelf
from studio.shelf.fit import BaseWeights
from studio.vocabulary import Vocabulary
from studio.worker import Runner, Worker
from studio.workshop.room import Workshop, open_workshop

STATE_FOLDER = ".studio"
DEFAULT_MACHINE = Machine()


@dataclass(frozen=True)
class Studio:
    """One engine, the adapters it may use, the folder its pictures go to, the jobs in line.

    `worker` runs what uses the model, `bench` what does not. Close it at the end. `state` is the
    one folder below `outputs` that is never served.
    """

    engine: Engine
    library: AdapterLibrary
    pictures: PictureStore
    grids: GridStore
    drafts: Drafts
    outputs: Path
    state: Path
    jobs: JobStore
    worker: Worker
    bench: Worker
    shelf: Shelf
    workshop: Workshop

    def worker_of(self, kind: str) -> Worker:
        """Who runs jobs of this kind."""
        return self.bench if kind == fusing.KIND else self.worker

    def close(self) -> None:
        """End the work at the next step and let go of the outputs folder."""
        self.workshop.keeper.close()
        self.worker.close()
        self.bench.close()
        self.jobs.close()


def open_studio(
    base: str, adapters: Path, outputs: Path, machine: Machine = DEFAULT_MACHINE
) -> Studio:
    """Load the base from a folder, a file or a hub id; raises `ShiraError` if it cannot be.

    Before that the folders below `outputs` are made, as a base may take minutes.
    """
    outputs = outputs.absolute()
    pictures, comparisons = outputs / "pictures", outputs / "comparisons"
    for folder in (pictures, comparisons):
        _make_writable(folder)
    state = outputs / STATE_FOLDER
    jobs = JobStore(state)
    try:
        engine, weights = _open_engine(base, adapters, machine)
    except BaseException:
        jobs.close()
        raise
    threading.Thread(target=engine.load_ahead, name="studio-load-ahead", daemon=True).start()
    store, grids = PictureStore(pictures), GridStore(comparisons)
    drafts = Drafts(state / "blends", engine.library)
    runners: dict[str, Runner] = {
        making.KIND: making.PictureRunner(engine, store),
        runner.KIND: runner.GridRunner(engine, grids, emoji.beside(Path(base).expanduser())),
    }
    return Studio(
        engine=engine,
        library=engine.library,
        pictures=store,
        grids=grids,
        drafts=drafts,
        outputs=outputs,
        state=state,
        jobs=jobs,
        worker=Worker(jobs, runners),
        bench=Worker(jobs, {fusing.KIND: fusing.BlendRunner(engine.library, drafts)}),
        shelf=Shelf.of(engine.library, weights, outputs),
        workshop=open_workshop(base, engine.library, outputs, machine.device),
    )


def _open_engine(base: str, adapters: Path, machine: Machine) -> tuple[Engine, BaseWeights]:
    pipe = machine.load(base)
    modules = component_modules(pipe)
    library = AdapterLibrary(adapters, {part: fingerprint(one) for part, one in modules.items()})
    engine = Engine(
        pipe,
        library,
        name=Path(base).resolve().name.removesuffix(".safetensors"),
        vocabulary=Vocabulary.read(Path(base).expanduser()),
    )
    return engine, BaseWeights.of(pipe, engine.base.name)


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            f"nothing can be written into {folder} ({error.strerror}); choose another --outputs"
        ) from error
