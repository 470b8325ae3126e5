"""One run from its settings to the finished adapter; all that can be refused is refused first."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from training import methods
from training.base import Base
from training.concepts import read_data
from training.config import Config
from training.errors import TrainingError
from training.events import EventLog
from training.machine import Machine
from training.methods import Create
from training.needs import advice
from training.prepare import check_fit, check_texts, side_of, with_words
from training.report import Report
from training.run_folder import RunFolder
from training.session import Outcome, Session
from training.views import Gaze

NUMBERS = 2
"""Raised by hand where the same settings and data come to train something else.

2: class images no longer depend on the run's seed.
"""


def run(
    config: Config,
    console: Console,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    create: Create = methods.create,
    base: Base | None = None,
) -> Outcome:
    """Train and export as `config` says; after `stop_after` steps of this call save and stop.

    `create` prepares the method on the UNet, where that is not one of the trainer's own. `base` is
    what the settings name, in their precision, if it is loaded already; it is as it was afterwards,
    but for `compile`, unless something is raised.
    Raises `ShiraError`, before anything is written if the fault can be known by then.
    """
    machine = Machine.detect(config.device, config.precision)
    folder = RunFolder.of(config)
    folder.check(config, resume=resume)
    dataset = read_data(config)
    config = with_words(config, dataset)
    base = base or Base.load(config.base, "cpu", machine.dtype)
    pipe = base.pipe
    side = side_of(config, pipe)
    check_fit(config, pipe, side, machine)
    check_texts(config, pipe, dataset)
    report = Report(Console(quiet=True), EventLog(Path(os.devnull)))
    if machine.is_main:
        folder.begin(config, resume=resume)
        report = Report(console, folder.log)

    def advise() -> str:
        gaze = Gaze.of(config, pipe, side)
        return advice(config, pipe, machine, [gaze.size(image) for image in dataset.images])

    with _failures_logged(report, advise):
        session = Session(config, machine, folder, dataset, base, side, report, create)
        return session.train(resume=resume, stop_after=stop_after)


@contextmanager
def _failures_logged(report: Report, advise: Callable[[], str]) -> Iterator[None]:
    """Write what ends the block into the event log; running out of memory gets a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = advise()
        report.log.write("failed", message=message)
        raise TrainingError(message) from error
    except Exception as error:
        report.log.write("failed", message=str(error))
        raise
