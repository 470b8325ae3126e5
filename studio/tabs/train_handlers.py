"""What the controls of the Train tab do."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import ShiraError
from studio.service import Studio
from studio.tabs import train_form, train_view
from studio.tabs.telling import remark, told
from studio.tabs.train_form import Form, Numbers, Presets
from studio.tabs.widgets import binned
from studio.workshop.captions import with_trigger
from studio.workshop.estimate import Estimate, estimate, strangers

EXAMPLES = Path(__file__).parents[2] / "examples"
_BUSY = '<div class="estimate" role="status">Asking the trainer what it would do…</div>'


class Pictures(NamedTuple):
    """Which image set is at hand, and its pictures."""

    chosen: Any
    captions: Any


class Watched(NamedTuple):
    """The trainings as shown: which one is chosen, the list, what it was last drawn from."""

    chosen: Any
    runs: Any
    drawn: Any


@dataclass(frozen=True)
class TrainHandlers:
    """What the controls of the tab do."""

    studio: Studio
    presets: Presets

    # Image sets

    def pictures(self, set_id: str | None, removed: str = "") -> Pictures:
        """The set of this id, or the newest where there is none of it."""
        sets = self.studio.workshop.sets
        ids = sets.ids()
        shown = set_id if set_id in ids else next(iter(ids), None)
        found = sets.find(shown) if shown else None
        choices = [(sets.title(one), one) for one in ids]
        return Pictures(
            gr.update(choices=choices, value=shown, visible=len(ids) > 1),
            train_view.captions_value(found, removed),
        )

    def new_set(self) -> Pictures:
        """An empty set."""
        number = len(self.studio.workshop.sets.ids()) + 1
        return self.pictures(self.studio.workshop.sets.create(f"Set {number}"))

    def delete_set(self, set_id: str | None) -> tuple[Any, ...]:
        """Throw the set at hand away; the outputs are `Pictures` and the trash."""
        sets = self.studio.workshop.sets
        try:
            ticket = sets.discard(set_id or "").ticket
        except ShiraError as error:
            raise told(error) from error
        return *self.pictures(None), binned(sets.trash, ticket)

    def restore_set(self, event: gr.EventData) -> tuple[Any, ...]:
        """Bring a set back and show it."""
        sets = self.studio.workshop.sets
        try:
            set_id = sets.restore(str(event.ticket))
        except ShiraError as error:
            raise told(error) from error
        return *self.pictures(set_id), binned(sets.trash)

    def empty_trash(self) -> Any:
        """Delete for good the sets that were thrown away."""
        self.studio.workshop.sets.trash.empty()
        return binned(self.studio.workshop.sets.trash)

    def drop(self, files: list[str] | None, set_id: str | None) -> tuple[Any, ...]:
        """Take in dropped files and empty the place where they were dropped."""
        try:
            added = self._add(set_id, [Path(file) for file in files or []])
        except ShiraError as error:
            raise told(error) from error
        return gr.update(value=None), *added

    def example(self, name: str | None) -> tuple[Any, ...]:
        """Begin a set from one of the folders that ship."""
        known = {path.name: path for path in example_folders()}
        if name not in known:
            return gr.skip(), gr.skip(), gr.skip()
        set_id = self.studio.workshop.sets.create(f"Example: {name}")
        return gr.update(value=None), *self._add(set_id, list(known[name].iterdir()))

    def _add(self, set_id: str | None, files: list[Path]) -> Pictures:
        sets = self.studio.workshop.sets
        if set_id not in sets.ids():
            set_id = sets.create("Set 1")
        remarks = sets.add(set_id, files)
        if remarks:
            more = f" … and {len(remarks) - 5} more" if len(remarks) > 5 else ""
            remark(f"Left out: {'; '.join(remarks[:5])}{more}")
        return self.pictures(set_id)

    def caption(self, set_id: str, event: gr.EventData) -> None:
        """Keep what was typed for one picture."""
        self._keep(set_id, {str(event.name): str(event.captions)})

    def take_out(self, set_id: str, event: gr.EventData) -> Pictures:
        """Take a picture out of the set."""
        try:
            self.studio.workshop.sets.remove(set_id, str(event.name))
        except ShiraError as error:
            raise told(error) from error
        return self.pictures(set_id, removed=str(event.name))

    def put_back(self, set_id: str, event: gr.EventData) -> Pictures:
        """Bring the picture back."""
        try:
            self.studio.workshop.sets.put_back(set_id, str(event.name))
        except ShiraError as error:
            raise told(error) from error
        return self.pictures(set_id)

    def add_trigger(
        self, set_id: str | None, shown: dict[str, Any], trigger: str, kind: str
    ) -> Pictures:
        """Put the trigger word into every caption that lacks it."""
        if not (trigger or "").strip():
            remark("Write the trigger word first, for example: ink style.")
            return self.pictures(set_id)
        captions = {
            one["name"]: with_trigger(one["captions"], trigger, kind) for one in shown["images"]
        }
        self._keep(set_id, captions)
        return self.pictures(set_id)

    def _keep(self, set_id: str | None, captions: dict[str, str]) -> None:
        try:
            if set_id:
                self.studio.workshop.sets.caption(set_id, captions)
        except ShiraError as error:
            raise told(error) from error

    # The form

    def choose_kind(self, kind: str, method: str) -> tuple[Any, ...]:
        """Offer the presets for a style or a concept."""
        choices = self.presets.choices(kind)
        first = choices[0][1] if choices else None
        numbers = self.presets.numbers(first, method) if first else [gr.skip()] * 4
        return gr.update(choices=choices, value=first), *numbers

    def choose_preset(self, preset: str, method: str) -> Numbers:
        """Fill in what the preset has for the method."""
        try:
            return self.presets.numbers(preset, method)
        except ShiraError as error:
            raise told(error) from error

    def check(self, set_id: str | None, shown: dict[str, Any], *values: Any) -> Iterator[str]:
        """Say what the training would do; the outputs are the estimate."""
        workshop = self.studio.workshop
        try:
            order = self._order(set_id, shown, Form(*values))
            yield _BUSY
            pictures = workshop.sets.find(set_id or "")
            if pictures.fault:
                yield train_view.estimate(Estimate((), (), (pictures.fault,)))
                return
            found = estimate(order, workshop.places, pictures.folder, workshop.trainings.all())
            texts = [one["captions"] for one in shown["images"]]
            trigger = order.trigger or found.trigger
            remarks = strangers(self.studio.engine.base.vocabulary, texts, trigger)
        except ShiraError as error:
            yield ""
            raise told(error) from error
        yield train_view.estimate(replace(found, remarks=(*found.remarks, *remarks)))

    def start(self, set_id: str | None, shown: dict[str, Any], *values: Any) -> tuple[Any, ...]:
        """Put the training in line and show it; the outputs are `Watched` and the estimate."""
        workshop = self.studio.workshop
        try:
            order = self._order(set_id, shown, Form(*values))
            known = {entry.title for entry in self.studio.library.entries}
            known |= {one.order.title for one in workshop.trainings.all() if not one.is_over}
            training_id = workshop.trainings.order(order, workshop.sets, set_id or "")
            if order.title in known:
                remark(
                    f"“{order.title}” is the name of an adapter already: the folder of this one "
                    f"becomes {order.name}."
                )
        except ShiraError as error:
            raise told(error) from error
        return *self._watched(training_id), ""

    def _order(self, set_id: str | None, shown: dict[str, Any], form: Form) -> Any:
        # What was typed a moment ago may not have been kept yet.
        self._keep(set_id, {one["name"]: one["captions"] for one in shown["images"]})
        return train_form.read_order(self.studio, self.presets, form)

    # Trainings

    def tick(self, chosen: str, drawn: str) -> tuple[Any, ...]:
        """Every two seconds: the trainings as they are now, if anything has changed."""
        found = self._watched(chosen)
        if found.drawn == drawn:
            return *[gr.skip()] * len(Watched._fields), gr.skip()
        return *found, self.contention()

    def contention(self) -> str:
        """Who shares the machine now."""
        running = self.studio.workshop.trainings.running
        return train_view.contention(running, self.studio.engine.base.device)

    def choose(self, event: gr.EventData) -> Watched:
        """Show one of the trainings."""
        return self._watched(str(event.id))

    def halt(self, event: gr.EventData) -> Watched:
        """Stop it gently, or at once when it is stopping already."""
        return self._do("stop", str(event.id))

    def resume(self, event: gr.EventData) -> Watched:
        """Go on from the last checkpoint."""
        return self._do("resume", str(event.id))

    def remove(self, event: gr.EventData) -> Watched:
        """Take it off the list."""
        return self._do("remove", str(event.id))

    def restore(self, event: gr.EventData) -> Watched:
        """Bring a removed one back."""
        return self._do("put_back", str(event.ticket))

    def reuse(self, event: gr.EventData) -> tuple[Any, ...]:
        """Show what a training was started with; the outputs are `Pictures` and `Form`."""
        workshop = self.studio.workshop
        try:
            training = workshop.trainings.find(str(event.id))
            form = train_form.filled(training.order, self.presets)
            title = f"Pictures of “{training.order.title}”"
            set_id = workshop.sets.gather(training.pictures, title)
            remark(f"The pictures are its own, too: “{workshop.sets.title(set_id)}”.")
        except ShiraError as error:
            raise told(error) from error
        return *self.pictures(set_id), *form

    def _do(self, what: str, argument: str) -> Watched:
        try:
            getattr(self.studio.workshop.trainings, what)(argument)
        except ShiraError as error:
            raise told(error) from error
        return self._watched(argument)

    def _watched(self, chosen: str) -> Watched:
        workshop = self.studio.workshop
        value = train_view.runs_value(workshop.trainings, self.studio.library, chosen)
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        shown = value["chosen"]["id"] if value["chosen"] else ""
        return Watched(shown, value, digest)

    def open_tab(self, set_id: str | None, chosen: str) -> tuple[Any, ...]:
        """When the tab is opened: everything as it is on disk, from then on every two seconds."""
        return (
            *self.pictures(set_id),
            binned(self.studio.workshop.sets.trash),
            *self._watched(chosen),
            self.contention(),
            gr.Timer(active=True),
        )


def example_folders() -> list[Path]:
    """The folders of images that ship."""
    return sorted(path for path in EXAMPLES.glob("*") if path.is_dir())
