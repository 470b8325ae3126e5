"""The work behind Compare: a grid filled cell by cell in its turn, its files kept up to date."""

from dataclasses import dataclass

from studio.engine import Engine
from studio.grids.export import export
from studio.grids.grid import Grid, fill
from studio.grids.plan import require_unchanged
from studio.grids.store import GridStore
from studio.jobs import Job, State
from studio.judges.judging import Judge
from studio.worker import Task, Worker

KIND = "grid"
_OPEN = (State.QUEUED, State.RUNNING)
_SEARCHED = 200


@dataclass(frozen=True)
class GridRunner:
    """Runs jobs of `KIND`; what they report is a `Grid`, their results are the grid's id."""

    engine: Engine
    grids: GridStore
    judge: Judge | None = None

    def __call__(self, task: Task) -> None:
        """Fill what is still empty in the task's grid; stopped, it is exported as far as it is."""
        name = str(task.job.settings["grid"])
        grid = self.grids.open(name)
        require_unchanged(grid.plan, self.engine.library)
        task.keep(name)
        task.report(grid)
        try:
            fill(self.engine, grid, report=task.report, judge=self.judge, stop=task.stop)
        finally:
            export(self.grids.open(name))


def submit(worker: Worker, name: str) -> Job:
    """Put a grid in line, unless it is there already; its job."""
    return job_of(worker, name) or worker.submit(KIND, {"grid": name})


def job_of(worker: Worker, name: str) -> Job | None:
    """The job that fills this grid, waiting or at work."""
    jobs = worker.store.recent(_SEARCHED, states=_OPEN, kind=KIND)
    return next((job for job in jobs if job.settings["grid"] == name), None)


def live(grid: Grid, progress: object) -> Grid:
    """The grid as its job last reported it, else as it is on disk."""
    return progress if isinstance(progress, Grid) else grid
