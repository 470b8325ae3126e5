"""What a training would do, before it is started: the trainer's own dry run, put into words."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from studio.durations import duration
from studio.vocabulary import Vocabulary
from studio.workshop.order import Order, Places, command
from studio.workshop.process import ROOT, trainer
from studio.workshop.runs import State, Training, TrainingError

SECONDS = 300
MOST_STRANGERS = 12
_REMARK, _FAULT = "remark: ", "fault: "
# Told elsewhere on the page, or one line for each picture.
_UNTOLD = ("name: ", "  ")


@dataclass(frozen=True)
class Estimate:
    """What was found: facts as (name, value), what is worth a thought, and what must be mended."""

    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def trigger(self) -> str:
        """The trigger words that the training will have, asked for or shared by all captions."""
        return dict(self.facts).get("trigger words", "")


def estimate(order: Order, places: Places, data: Path, earlier: Iterable[Training]) -> Estimate:
    """Ask the trainer what it would do; nothing is written. Takes as long as loading the base.

    Raises `TrainingError` if there is no answer.
    """
    arguments = command(order, places, data=data, run=data / "run-to-be")
    try:
        done = subprocess.run(
            trainer([*arguments, "--dry-run"]),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            "The check took too long: the machine may be busy. Try again."
        ) from error
    said = done.stdout.decode(errors="replace").splitlines()
    complained = done.stderr.decode(errors="replace").strip()
    found = read(said, complained if done.returncode else "", hidden=(f"{data}/", f"{ROOT}/"))
    return Estimate((*found.facts, *time_taken(order, earlier)), found.remarks, found.faults)


def read(said: Iterable[str], complained: str, hidden: tuple[str, ...] = ()) -> Estimate:
    """Sort the dry run's lines; `hidden` beginnings of paths are left out."""
    facts, remarks = [], []
    for line in said:
        for place in hidden:
            line = line.replace(place, "")
        name, colon, value = line.partition(": ")
        if line.startswith(_REMARK):
            remarks.append(line.removeprefix(_REMARK))
        elif colon and not line.startswith(_UNTOLD):
            facts.append((name, value))
    for place in hidden:
        complained = complained.replace(place, "")
    return Estimate(tuple(facts), tuple(remarks), _faults(complained))


def _faults(complained: str) -> tuple[str, ...]:
    if "Traceback" in complained:
        return (complained.splitlines()[-1],)
    parts = ("\n" + complained).split(f"\n{_FAULT}")
    return tuple(part.strip() for part in parts if part.strip())


def strangers(
    vocabulary: Vocabulary | None, captions: Iterable[str], trigger: str
) -> tuple[str, ...]:
    """A remark on the words of captions that a small base never read, besides the trigger."""
    if vocabulary is None:
        return ()
    unknown = vocabulary.unknown(", ".join(captions), [trigger])[:MOST_STRANGERS]
    if not unknown:
        return ()
    words = ", ".join(f"“{word}”" for word in unknown)
    return (
        f"the base never read {words}: name what is in the pictures in words that it knows, so "
        "that the trigger alone stands for what is new",
    )


def time_taken(order: Order, earlier: Iterable[Training]) -> list[tuple[str, str]]:
    """How long it may take, by the last training here of the same preset and method."""
    alike = (order.preset, order.method)
    for training in earlier:
        pace, steps = training.progress.pace, order.steps or training.progress.steps
        if pace and (training.order.preset, training.order.method) == alike:
            how = "takes" if training.state is State.TRAINING else "took"
            told = f"about {duration(pace * steps)}, as “{training.order.title}” {how}"
            return [("time", f"{told} {pace:.2g} s a step")]
    return [("time", "not known yet: no training of this kind was done here")]
