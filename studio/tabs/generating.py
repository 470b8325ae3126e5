"""What the controls of the Generate tab do; `studio.tabs.generate` lays them out."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import ShiraError
from studio import making
from studio.errors import JobError, PictureError
from studio.following import follow
from studio.infotext import to_infotext
from studio.jobs import Job, State
from studio.making import Making, Order
from studio.prompt import read_tags
from studio.reading import read_picture
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs import fragments, stage
from studio.tabs.cards import RECENT, adapter_cards, recent_pictures
from studio.tabs.controls import choose_seed, read_size, showing, size_name, with_word
from studio.tabs.rack import read_rack, write_rack
from studio.tabs.telling import remark, told
from studio.worker import Standing


class Shown(NamedTuple):
    """Everything on the page that belongs to the picture on the stage; `current` is its id."""

    stage: Any
    current: Any
    details: Any
    settings: Any
    infotext: Any


class Form(NamedTuple):
    """What the person sets, in the order that `GenerateHandlers.begin` takes it."""

    prompt: Any
    negative_prompt: Any
    rack: Any
    steps: Any
    guidance: Any
    size: Any
    seed: Any
    fresh_seed: Any
    sampler: Any
    count: Any


UNCHANGED = Shown(*[gr.skip()] * len(Shown._fields))


@dataclass(frozen=True)
class GenerateHandlers:
    """What the controls of the tab do."""

    studio: Studio

    def begin(self, *values: Any) -> tuple[Any, ...]:
        """Put a job in line; gives its id, the seed, the buttons, and the stage.

        The values are those of `Form`, then the id of the picture on the stage.
        """
        *fields, current = values
        try:
            order = self._order(Form(*fields))
            job = self.studio.worker.submit(making.KIND, order.plain())
        except ShiraError as error:
            raise told(error) from error
        for words in self.studio.engine.remarks(order.recipe):
            remark(words)
        return job.id, order.recipe.seed, *showing(running=True), self._waiting(None, current)

    def again(self, job: str, current: str) -> tuple[Any, ...]:
        """Put the last job in line once more; gives its id, the buttons, and the stage."""
        try:
            anew = self.studio.worker.again(job)
        except ShiraError as error:
            raise told(error) from error
        return anew.id, *showing(running=True), self._waiting(None, current)

    def stop(self, job: str) -> None:
        """Take the job out of the line, or end it at its next step."""
        if job:
            self.studio.worker.cancel(job)

    async def follow(self, job: str, current: str) -> AsyncIterator[tuple[Any, ...]]:
        """Show a job until it is over; the outputs are `Shown`, the strip and the buttons.

        Any page may follow any job at any time: a page that is loaded again goes on here.
        """
        kept = 0
        try:
            async for standing in follow(self.studio.worker, job):
                if standing.job.is_over:
                    break
                grown, kept = len(standing.job.results) > kept, len(standing.job.results)
                strip = recent_pictures(self.studio.pictures) if grown else gr.skip()
                busy = UNCHANGED._replace(stage=self._busy(standing, current))
                yield *busy, strip, *showing(running=True)
        except JobError:  # a job of long ago, or of another outputs folder
            yield *UNCHANGED, gr.skip(), *showing(running=False)
            return
        strip = recent_pictures(self.studio.pictures)
        yield *self._over(standing.job, current), strip, *showing(running=False)
        if standing.job.state == State.FAILED and standing.job.results:
            raise told(JobError(standing.job.error))

    def open_page(self, job: str) -> tuple[Any, ...]:
        """For a page that opens: adapters and pictures as they are on disk, the last form."""
        self.studio.library.rescan()
        cards = gr.update(cards=adapter_cards(self.studio.library))
        strip = self._strip(RECENT)
        try:
            recipe = Order.read(self.studio.jobs.get(job).settings).recipe if job else None
        except (ShiraError, KeyError, TypeError):
            recipe = None
        if recipe is None:
            return strip, *Form(*[gr.skip()] * len(Form._fields))._replace(rack=cards)
        form = self._filled(recipe, quiet=True)
        rack = gr.update(cards=adapter_cards(self.studio.library), value=form.rack)
        return strip, *form._replace(rack=rack, fresh_seed=gr.skip(), count=gr.skip())

    def rescan(self) -> Any:
        """Look at the adapters folder again."""
        self.studio.library.rescan()
        return gr.update(cards=adapter_cards(self.studio.library))

    def prepare(self, rack: Any) -> None:
        """Load the chosen adapters while their person still writes."""
        self.studio.engine.prepare(*read_rack(rack))

    def pick(self, job: str, event: gr.EventData) -> Shown:
        """Show a picture of the strip, or another one of its job."""
        try:
            name = str(event.name)
            return self._shown(name, self._siblings(job, name))
        except ShiraError as error:
            raise told(error) from error

    def more(self, event: gr.EventData) -> Any:
        """Show older pictures as well."""
        shown = event.shown if isinstance(event.shown, int) else 0
        return self._strip(min(max(shown, 0), 100_000) + RECENT)

    def reuse(self, current: str) -> Form:
        """Set the form to what made the picture on the stage; adapters that are gone are named."""
        try:
            record = self.studio.pictures.record(current)
        except ShiraError as error:
            raise told(error) from error
        return self._filled(replace(record.recipe, sampler=record.sampler))

    def take(self, file: str) -> Form:
        """Set the form to the settings inside a PNG that was dropped on the page."""
        base = self.studio.engine.base
        width, height = base.native
        default = Recipe("-", base.steps, base.guidance, 0, width, height)
        try:
            found = read_picture(Path(file), default)
        except ShiraError as error:
            raise told(error) from error
        for words in found.remarks:
            remark(words)
        return self._filled(found.recipe)

    def _order(self, form: Form) -> Order:
        base = self.studio.engine.base
        prompt, tagged = read_tags(form.prompt or "")
        mix, timing = read_rack(form.rack)
        width, height = read_size(base, form.size)
        recipe = Recipe(
            prompt=prompt,
            negative_prompt=form.negative_prompt or "",
            steps=int(form.steps or 0),
            guidance=form.guidance,
            seed=choose_seed(form.seed, fresh=form.fresh_seed),
            width=width,
            height=height,
            mix={**mix, **tagged},
            sampler=form.sampler or "",
            timing=timing,
        )
        self.studio.engine.check(recipe)
        return Order(recipe, int(form.count or 0))

    def _filled(self, recipe: Recipe, *, quiet: bool = False) -> Form:
        """The form for a recipe, with a remark on what this base or library has not."""
        base, size, left = self.studio.engine.base, (recipe.width, recipe.height), []
        if size not in base.sizes:
            left.append(f"{base.name} makes no {size_name(size)} px; its own size is set instead.")
            size = base.native
        sampler = recipe.sampler or base.samplers[0]
        if sampler not in base.samplers:
            left.append(f"The sampler {sampler!r} is not here; {base.samplers[0]} is set instead.")
            sampler = base.samplers[0]
        known = {entry.name for entry in self.studio.library.usable}
        if gone := [name for name in recipe.mix if name not in known]:
            left.append(f"Not in the library, and left out: {', '.join(gone)}.")
        if left and not quiet:
            remark(" ".join(left))
        mix = {name: strength for name, strength in recipe.mix.items() if name in known}
        return Form(
            recipe.prompt,
            recipe.negative_prompt,
            write_rack(mix, recipe.timing),
            recipe.steps,
            recipe.guidance,
            size_name(size),
            recipe.seed,
            False,
            sampler,
            1,
        )

    def _waiting(self, standing: Standing | None, current: str) -> str:
        return stage.waiting(standing, self._previous(current), crisp=self._crisp)

    def _busy(self, standing: Standing, current: str) -> str:
        progress = standing.progress
        if not isinstance(progress, Making):
            return self._waiting(standing, current)
        previous = self._previous(current)
        return stage.making(progress, progress.look, previous, crisp=self._crisp)

    def _over(self, job: Job, current: str) -> Shown:
        """The last picture of a job; without one the picture before, or what went wrong."""
        if job.results:
            with_others = self._siblings(job.id, job.results[-1])
            try:
                return self._shown(job.results[-1], with_others)
            except PictureError:
                return UNCHANGED._replace(stage=stage.empty())
        if job.state == State.CANCELLED:
            remark("Stopped. The base model is back as it was.")
            if current:
                return self._shown(current, [current])
        return UNCHANGED._replace(stage=stage.ended(job))

    def _shown(self, name: str, siblings: Sequence[str]) -> Shown:
        path = self.studio.pictures.path(name)
        record = self.studio.pictures.record(name)
        others = [self.studio.pictures.folder / f"{one}.png" for one in siblings]
        return Shown(
            stage=stage.done(path, record, others, crisp=self._crisp),
            current=name,
            details=gr.update(visible=True),
            settings=fragments.settings(record),
            infotext=to_infotext(record),
        )

    def _siblings(self, job: str, name: str) -> list[str]:
        """The pictures of a job, if `name` is one of them."""
        try:
            results = self.studio.jobs.get(job).results if job else ()
        except JobError:
            results = ()
        return list(results) if name in results else [name]

    def _strip(self, limit: int) -> Any:
        pictures = recent_pictures(self.studio.pictures, limit + 1)
        return gr.update(value=pictures[:limit], more=len(pictures) > limit)

    def _previous(self, current: str) -> Path | None:
        return self.studio.pictures.folder / f"{current}.png" if current else None

    @property
    def _crisp(self) -> bool:
        return self.studio.engine.base.is_small


def add_words(prompt: str, event: gr.EventData) -> str:
    """The prompt with the trigger word that was clicked."""
    return with_word(prompt, str(event.word))
