"""The studio for programs: its endpoints for `gradio_client` and MCP."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio import making
from studio.following import ended
from studio.grids import compare, runner
from studio.grids.compare import Choice
from studio.grids.export import SHEET_FILE
from studio.grids.grid import Grid
from studio.infotext import Record, to_json
from studio.making import Order
from studio.prompt import read_tags
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs.controls import SHELF, choose_seed
from studio.tabs.telling import told

MAX_JOBS = 1000


@dataclass(frozen=True)
class Endpoints:
    """What programs can call; what is left out is as on the page."""

    studio: Studio

    def adapters(self) -> list[dict[str, Any]]:
        """Every adapter folder as it is on disk now; `problem` is empty for those that work."""
        return [
            {
                "name": entry.name,
                "title": entry.title,
                "method": entry.info.method,
                "trigger_words": list(entry.info.trigger_words),
                "base_model": entry.info.base_model,
                "bytes": entry.stamp.size,
                "card": entry.card(),
                "problem": entry.problem,
            }
            for entry in self.studio.library.rescan()
        ]

    def jobs(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest jobs, newest first.

        `state` is queued, running, done, failed, cancelled or interrupted; `ahead` is how many
        jobs come before a waiting one; `pictures` are the ids of finished pictures, of a grid its
        id, of a blend its draft.
        """
        return [
            {
                "id": job.id,
                "kind": job.kind,
                "state": job.state.value,
                "ahead": self.studio.worker_of(job.kind).standing(job.id).ahead,
                "prompt": job.settings.get("recipe", {}).get("prompt", ""),
                "created": job.created,
                "started": job.started,
                "ended": job.ended,
                "pictures": list(job.results),
                "error": job.error,
            }
            for job in self.studio.jobs.recent(_within(limit, 1, MAX_JOBS))
        ]

    def cancel(self, job: str) -> str:
        """Take a job out of the line, or end it at its next step; gives its state by then."""
        try:
            self.studio.worker_of(self.studio.jobs.get(job).kind).cancel(job)
            return self.studio.jobs.get(job).state.value
        except ShiraError as error:
            raise told(error) from error

    def import_adapter(self, file: str) -> dict[str, Any]:
        """Check a .safetensors or .zip file and take it into the library.

        Gives the name and the title that it has there, and remarks on it; the name is made from
        the file's. A file that is refused leaves nothing behind.
        """
        path = Path(file or "")
        try:
            if not file:
                raise SettingError("No file came with the call: give one of .safetensors or .zip.")
            arrival = self.studio.shelf.take_upload(path)
        except ShiraError as error:
            raise told(error) from error
        return asdict(arrival)

    async def generate(
        self,
        prompt: str,
        adapters: dict[str, float] | None = None,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        sampler: str = "",
        timing: dict[str, str] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make one picture in its turn: the PNG file and its settings.

        `adapters` maps names to strengths from -1 to 2, `timing` names to always, early, late or
        alternate; `<lora:NAME:STRENGTH>` in the prompt counts as well. Without a seed one is drawn.
        """
        try:
            order = Order(
                self._recipe(
                    *(prompt, adapters or {}, steps, guidance, seed, width, height),
                    negative_prompt=negative_prompt,
                    sampler=sampler,
                    timing=timing or {},
                )
            )
            self.studio.engine.check(order.recipe)
            job = self.studio.worker.submit(making.KIND, order.plain())
            (name,) = (await ended(self.studio.worker, job.id)).results
            record = self.studio.pictures.record(name)
        except ShiraError as error:
            raise told(error) from error
        return _file(self.studio.pictures.path(name)), _plain(record)

    async def compare(
        self,
        prompt: str,
        a: str,
        b: str,
        strength_a: float = 1.0,
        strength_b: float = 1.0,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Make the grid of SHiRA and LoRA under base, a, b and both: one sheet, then its cells."""
        worker, grids = self.studio.worker, self.studio.grids
        try:
            recipe = self._recipe(prompt, {}, steps, guidance, seed, None, None)
            choices = Choice(a, strength_a), Choice(b, strength_b)
            plan = compare.plan(self.studio.library, recipe, *choices)
            name = grids.begin(plan, self.studio.library)
            await ended(worker, runner.submit(worker, name).id)
            grid = grids.open(name)
        except ShiraError as error:
            raise told(error) from error
        return _file(grid.folder / SHEET_FILE), [
            _cell(grid, index) for index in range(len(grid.cells))
        ]

    def _recipe(
        self,
        prompt: str,
        mix: dict[str, float],
        steps: int | None,
        guidance: float | None,
        seed: int | None,
        width: int | None,
        height: int | None,
        **more: Any,
    ) -> Recipe:
        base = self.studio.engine.base
        words, tagged = read_tags(prompt) if isinstance(prompt, str) else (prompt, {})
        return Recipe(
            prompt=words,
            steps=base.steps if steps is None else steps,
            guidance=base.guidance if guidance is None else guidance,
            seed=choose_seed(None, fresh=True) if seed is None else seed,
            width=width or base.native[0],
            height=height or base.native[1],
            mix={**mix, **tagged} if isinstance(mix, dict) else mix,
            **more,
        )


def _within(value: Any, low: int, high: int) -> int:
    return min(max(value, low), high) if isinstance(value, int) else high


def _cell(grid: Grid, index: int) -> dict[str, Any]:
    row, column = divmod(index, len(grid.plan.columns))
    cell = grid.cells[index]
    return {
        "method": grid.plan.rows[row],
        "label": grid.plan.columns[column],
        "adapters": dict(cell.mix),
        "problem": cell.problem,
        "scores": [asdict(score) for score in cell.scores],
        "picture": _file(cell.picture) if cell.picture else None,
    }


def _file(path: Path) -> dict[str, Any]:
    """A file as Gradio's protocol names it; its client then downloads it."""
    return gr.FileData(path=str(path), mime_type="image/png").model_dump()


def _plain(record: Record) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(to_json(record))
    return plain


def build(studio: Studio, *, as_tools: bool) -> None:
    """Name the endpoints; what waits for a job takes no place from other calls.

    Those that are documented are an MCP server's tools, where there is one (`as_tools`).
    """
    endpoints = Endpoints(studio)
    calls = (
        endpoints.generate,
        endpoints.compare,
        endpoints.adapters,
        endpoints.jobs,
        endpoints.cancel,
    )
    for call in calls:
        gr.api(call, concurrency_limit=None)
    # Of a real component Gradio sees to it that the file was uploaded. A tool would be given an
    # address instead, and the studio fetches nothing.
    file, made = gr.File(label="file", visible=False), gr.JSON(label="adapter", visible=False)
    shown = {"api_name": "import", "api_visibility": "undocumented" if as_tools else "public"}
    file.upload(endpoints.import_adapter, file, made, **shown, **SHELF)
