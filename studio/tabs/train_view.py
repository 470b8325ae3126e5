"""Image sets, trainings and estimates in the form that the page shows."""

from collections import defaultdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from studio.durations import duration
from studio.library import AdapterLibrary
from studio.tabs.fragments import file_url
from studio.workshop.estimate import Estimate
from studio.workshop.runs import ALIVE, RESUMABLE, State, Training, Trainings
from studio.workshop.sets import ImageSet

POINTS = 400
"""Of how many points the loss is drawn; more would not be seen."""

SHOWN_SAMPLES = 8
_SMOOTH = 0.05
_WORDS = {
    State.WAITING: "Waiting for the training before it to end.",
    State.PREPARING: "Preparing: reading the base, encoding the pictures.",
    State.STOPPING: "Stopping: it finishes its step and saves.",
    State.STOPPED: "Stopped and saved. It goes on from here when you resume it.",
    State.INTERRUPTED: "It ended without a word, perhaps with the machine.",
    State.FAILED: "It could not go on.",
}


def captions_value(found: ImageSet | None, removed: str = "") -> dict[str, Any]:
    """The value of `widgets.captions`; `removed` is the file name of the picture taken out last."""
    if found is None:
        return {"set": "", "images": [], "removed": None}
    images = [
        {
            "name": image.name,
            "told": image.told,
            "source": file_url(image.thumbnail),
            "captions": image.captions,
        }
        for image in found.images
    ]
    gone = {"name": removed, "told": found.told.get(removed, removed)} if removed else None
    return {"set": found.id, "images": images, "removed": gone}


def runs_value(trainings: Trainings, library: AdapterLibrary, chosen: str) -> dict[str, Any]:
    """The value of `widgets.runs`, with `chosen` or else the one that runs or is newest in full."""
    found = trainings.all()
    alive = [one for one in found if one.state in ALIVE]
    known = {one.id: one for one in found}
    shown = known.get(chosen) or next(iter(alive or found), None)
    return {
        "runs": [_item(one) for one in found],
        "chosen": _detail(shown, library) if shown else None,
        "bin": [
            {"ticket": item.ticket, "title": item.title} for item in trainings.trash.items()[:1]
        ],
    }


def _item(training: Training) -> dict[str, Any]:
    return {
        "id": training.id,
        "title": training.order.title,
        "state": training.state.value,
        "share": _share(training),
        "about": _about(training),
    }


def _about(training: Training) -> str:
    order = training.order
    began = datetime.strptime(training.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return f"{order.kind} · {order.method} · {order.preset} · {began:%Y-%m-%d %H:%M} UTC"


def _share(training: Training) -> float:
    progress = training.progress
    if training.state is State.FINISHED:
        return 1.0
    return round(progress.step / progress.steps, 4) if progress.steps else 0.0


def _detail(training: Training, library: AdapterLibrary) -> dict[str, Any]:
    progress = training.progress
    return {
        **_item(training),
        "steps": progress.steps,
        "words": _words(training, library),
        "problem": training.problem,
        "actions": _actions(training.state),
        "losses": loss_points(progress.losses),
        "facts": _facts(training),
        "samples": _samples(training),
        "warnings": list(progress.warnings),
    }


def _actions(state: State) -> list[str]:
    if state in ALIVE:
        return ["halt", "reuse"]
    if state is State.WAITING:
        return ["halt", "reuse", "remove"]
    return [*(["resume"] if state in RESUMABLE else []), "reuse", "remove"]


def _words(training: Training, library: AdapterLibrary) -> str:
    progress = training.progress
    if training.state is State.FINISHED:
        if (library.folder / progress.adapter).is_dir():
            return f"Finished. {training.order.title} is in the library and under Generate."
        return "Finished. Its adapter is not in the library any more."
    if training.state is State.TRAINING:
        left = progress.seconds_left
        time = f" · about {duration(left)} left" if left is not None else ""
        return f"Step {progress.step} of {progress.steps}{time}"
    at = f" ({progress.step} of {progress.steps} steps done)" if progress.step else ""
    return f"{_WORDS[training.state]}{at}"


def _facts(training: Training) -> list[list[str]]:
    progress, order = training.progress, training.order
    rows = [("Trigger", order.trigger), ("Trained values", f"{progress.trained:,}")]
    if progress.losses:
        rows.append(("Loss, lately", f"{loss_points(progress.losses)[-1][2]:.3f}"))
    if progress.step_seconds:
        rows.append(("A step", f"{progress.step_seconds:.2f} s"))
    return [list(row) for row in rows if row[1] not in ("", "0")]


def loss_points(losses: tuple[tuple[int, float], ...]) -> list[list[float]]:
    """(step, loss, running average) of at most `POINTS` evenly spaced steps, the last included."""
    points, average, weight = [], 0.0, 0.0
    every = -(-len(losses) // POINTS)
    for number, (step, loss) in enumerate(losses):
        average += _SMOOTH * (loss - average)
        weight += _SMOOTH * (1 - weight)
        if (len(losses) - 1 - number) % max(every, 1) == 0:
            # Divided as Adam's averages are: the first steps are not drawn towards 0.
            points.append([step, round(loss, 5), round(average / weight, 5)])
    return points


def _samples(training: Training) -> list[dict[str, Any]]:
    by_step = defaultdict(list)
    for sample in training.progress.samples:
        path = training.samples / Path(sample.file).name
        by_step[sample.step].append({"source": file_url(path), "prompt": sample.prompt})
    newest = sorted(by_step.items(), reverse=True)[:SHOWN_SAMPLES]
    return [{"step": step, "pictures": pictures} for step, pictures in newest]


def estimate(found: Estimate) -> str:
    """What the dry run said, as HTML."""
    rows = "".join(
        f"<dt>{escape(_fact_name(name))}</dt><dd>{escape(value)}</dd>"
        for name, value in found.facts
    )
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in found.faults)
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in found.remarks)
    parts = ['<div class="estimate" role="status">']
    if faults:
        parts.append(f'<strong>To be mended first</strong><ul class="faults">{faults}</ul>')
    elif not remarks:
        parts.append("<strong>All is well: it can start.</strong>")
    if remarks:
        parts.append(f"<strong>Worth a look</strong><ul>{remarks}</ul>")
    return "".join([*parts, f'<dl class="settings">{rows}</dl></div>'])


def _fact_name(name: str) -> str:
    """What the page calls what the trainer's dry run tells."""
    if name.startswith("bucket "):
        return f"Size {name.removeprefix('bucket ').replace('x', '×')}"
    return {"data": "Pictures"}.get(name, name.capitalize())


def contention(running: Training | None, device: str) -> str:
    """A word on who shares the machine with whom."""
    if running is None:
        words = (
            "One training runs at a time, others wait in line. While it runs, pictures take "
            f"longer: both use the {escape(device)}."
        )
    else:
        words = (
            f"<strong>{escape(running.order.title)}</strong> is being trained on the "
            f"{escape(device)}, so pictures take longer until it ends. What you start now waits "
            "for it."
        )
    return f'<p class="help">{words}</p>'
