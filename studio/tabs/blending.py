"""What the buttons of Blend do to make a blend and to keep it; trials are in `trying`."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio.blends import runner
from studio.blends.account import Account
from studio.blends.blend import MAX_PARTS, Blend, Meeting, Thinning
from studio.blends.drafts import Draft
from studio.blends.heatmap import heat_map
from studio.blends.interference import Measuring
from studio.errors import JobError
from studio.following import follow
from studio.jobs import Job, State
from studio.service import Studio
from studio.tabs import blendview, trying
from studio.tabs.controls import showing, with_word
from studio.tabs.heatplot import heat_plot
from studio.tabs.telling import remark, told
from studio.worker import Standing

TOLD_EVERY = 0.2
"""Seconds between two words on the progress."""


class Form(NamedTuple):
    """What makes a blend; the strengths stand in the order of the names."""

    names: Any
    strengths: tuple[Any, ...]
    meeting: Any
    thinning: Any
    keep: Any
    result_keep: Any
    seed: Any

    @classmethod
    def read(cls, names: Any, *rest: Any) -> "Form":
        """From the flat values that a handler gets."""
        return cls(names, rest[:MAX_PARTS], *rest[MAX_PARTS:])

    @property
    def flat(self) -> list[Any]:
        """All of it in a row, for `read`."""
        return [self.names, *self.strengths, *self[2:]]

    @property
    def parts(self) -> dict[str, float]:
        """The chosen adapters with their strengths."""
        return dict(zip(self.names or [], self.strengths, strict=False))


class Made(NamedTuple):
    """What the page shows of a blend; `draft` is its name, `after` what can be done with it."""

    progress: Any
    outcome: Any
    report: Any
    pair: Any
    measure: Any
    heat: Any
    draft: Any
    after: Any
    title: Any
    triggers: Any


UNCHANGED = Made(*[gr.skip()] * len(Made._fields))


@dataclass(frozen=True)
class BlendHandlers:
    """What the controls of the tab do, but for the trial."""

    studio: Studio

    def place(self, names: list[str] | None, order: list[str], *strengths: float) -> list[Any]:
        """Sliders for the chosen adapters, each with the strength that it had; then their order."""
        chosen = (names or [])[:MAX_PARTS]
        before = dict(zip(order, strengths, strict=False))
        sliders = self._sliders({name: before.get(name, 1.0) for name in chosen})
        return [*sliders, chosen]

    def begin(self, *values: Any) -> tuple[Any, ...]:
        """Put a blend in line; gives its job, the buttons and the progress."""
        try:
            blend = _read(Form.read(*values))
            bearers = [entry.title for entry in runner.bearers_of(self.studio.library, blend)]
            job = self.studio.bench.submit(runner.KIND, blend.plain())
        except ShiraError as error:
            raise told(error) from error
        if len(bearers) > 1:
            remark(
                f"{' and '.join(bearers)} each bring a word of their own, and a file holds one: "
                "the blend is without these words."
            )
        return job.id, *showing(running=True), blendview.busy(None)

    def stop(self, job: str) -> None:
        """Take the blend out of the line, or end it at its next weight."""
        if job:
            self.studio.bench.cancel(job)

    async def follow(self, job: str, measure: str) -> AsyncIterator[tuple[Any, ...]]:
        """Show a blend on its way and when it is made; the outputs are `Made` and the buttons.

        Any page may follow any job at any time: a page that is loaded again goes on here.
        """
        yield *UNCHANGED, gr.skip(), gr.skip()
        seen = 0.0
        try:
            async for standing in follow(self.studio.bench, job):
                if standing.job.is_over:
                    break
                if time.monotonic() - seen > TOLD_EVERY:
                    seen = time.monotonic()
                    busy = UNCHANGED._replace(progress=_busy(standing))
                    yield *busy, *showing(running=True)
        except JobError:  # none was made on this page, or long ago
            return
        yield *self._over(standing.job, measure), *showing(running=False)

    def open_page(self, job: str) -> tuple[Any, ...]:
        """For a page that opens: the form as it was for the last blend, and the order of names."""
        try:
            blend = Blend.read(self.studio.jobs.get(job).settings) if job else None
        except (ShiraError, LookupError, TypeError, ValueError):
            blend = None
        if blend is None:
            return *[gr.skip()] * (MAX_PARTS + len(Form._fields) - 1), gr.skip()
        known = {entry.name for entry in self.studio.library.usable}
        parts = {name: strength for name, strength in blend.parts.items() if name in known}
        form = Form(
            gr.update(choices=self.choices(), value=[*parts]),
            tuple(self._sliders(parts)),
            blend.meeting,
            blend.thinning,
            gr.update(value=blend.keep * 100, visible=blend.thinning != Thinning.NONE),
            blend.result_keep * 100,
            blend.seed,
        )
        return *form.flat, [*parts]

    def heat(self, draft: str, index: int | None, measure: str) -> str:
        """The map of another pair or measure."""
        if not draft:
            return ""
        try:
            return self._heat(self.studio.drafts.account(self._draft(draft)), index or 0, measure)
        except ShiraError as error:
            raise told(error) from error

    def keep(self, draft: str, current: str, title: str, triggers: str) -> tuple[Any, str]:
        """Put the blend into the library; the trial's first picture becomes its thumbnail."""
        try:
            found, picture = self._draft(draft), trying.picture(self.studio, current, draft)
            name = self.studio.drafts.publish(found, title, triggers, picture)
        except ShiraError as error:
            raise told(error) from error
        except OSError as error:
            words = f"The blend cannot be written into the library: {error.strerror}."
            raise told(SettingError(words)) from error
        entry = self.studio.library.find(name)
        return gr.update(choices=self.choices()), blendview.kept(entry.title, name)

    def refresh(self) -> Any:
        """The adapters to choose from, as they are on disk now."""
        return gr.update(choices=self.choices())

    def choices(self) -> list[tuple[str, str]]:
        """Every adapter that works."""
        return [(entry.label, entry.name) for entry in self.studio.library.usable]

    def title(self, name: str) -> str:
        """What people call an adapter."""
        return self._titles().get(name, name)

    def add_words(self, prompt: str, names: list[str] | None) -> str:
        """The prompt with the trigger words of the chosen adapters."""
        for word in self._triggers(names or []):
            prompt = with_word(prompt, word)
        return prompt

    def _triggers(self, names: Sequence[str]) -> list[str]:
        known = {entry.name: entry.info.trigger_words for entry in self.studio.library.usable}
        return list(dict.fromkeys(word for name in names for word in known.get(name, ())))

    def _over(self, job: Job, measure: str) -> Made:
        if job.state != State.DONE:
            return UNCHANGED._replace(progress="", report=blendview.ended(job))
        try:
            draft = self.studio.drafts.find(job.results[-1])
            account = self.studio.drafts.account(draft)
        except ShiraError:  # one of long ago: the form is all that is left of it
            return UNCHANGED._replace(progress="")
        titles = self._titles()
        pairs = [
            (blendview.pair_words(pair, titles), number)
            for number, pair in enumerate(account.pairs)
        ]
        names = [*account.blend.parts]
        return Made(
            progress="",
            outcome=blendview.outcome(account, draft.entry.stamp.size),
            report=blendview.report(account.pairs, titles),
            pair=gr.update(choices=pairs, value=0, visible=len(pairs) > 1),
            measure=gr.update(visible=True),
            heat=self._heat(account, 0, measure),
            draft=draft.name,
            after=gr.update(visible=True),
            title=" + ".join(titles.get(name, name) for name in names),
            triggers=", ".join(self._triggers(names)),
        )

    def _heat(self, account: Account, index: int, measure: str) -> str:
        pair = account.pairs[index]
        words = blendview.pair_words(pair, self._titles())
        return heat_plot(heat_map(pair.meetings, measure), measure, words)

    def _draft(self, name: str) -> Draft:
        if not name:
            raise SettingError("There is no blend yet: press Blend first.")
        return self.studio.drafts.find(name)

    def _sliders(self, parts: dict[str, float]) -> list[Any]:
        titles = {name: label for label, name in self.choices()}
        sliders = [
            gr.update(visible=True, label=titles.get(name, name), value=strength)
            for name, strength in parts.items()
        ]
        return [*sliders, *[gr.update(visible=False)] * (MAX_PARTS - len(parts))]

    def _titles(self) -> dict[str, str]:
        return {entry.name: entry.title for entry in self.studio.library.usable}


def _read(form: Form) -> Blend:
    return Blend(
        form.parts,
        Meeting(form.meeting),
        Thinning(form.thinning),
        keep=(form.keep or 0) / 100,
        result_keep=(form.result_keep or 0) / 100,
        seed=int(form.seed or 0),
    )


def _busy(standing: Standing) -> str:
    progress = standing.progress
    return blendview.busy(progress if isinstance(progress, Measuring) else None, standing.ahead)
