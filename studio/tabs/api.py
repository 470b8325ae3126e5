"""The studio for programs: `/generate`, `/compare` and `/adapters`, for `gradio_client`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from shira_diffusion.errors import ShiraError
from studio.errors import JobError
from studio.following import wait
from studio.grids import compare, runner
from studio.grids.compare import Choice
from studio.grids.export import SHEET_FILE
from studio.grids.grid import Grid
from studio.infotext import Record, to_json
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs.controls import MODEL, choose_seed
from studio.tabs.telling import told


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

    def generate(
        self,
        prompt: str,
        adapters: dict[str, float] | None = None,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make one picture: the PNG file and its settings. Without a seed one is drawn."""
        base = self.studio.engine.base
        try:
            recipe = Recipe(
                prompt=prompt,
                negative_prompt=negative_prompt,
                steps=base.steps if steps is None else steps,
                guidance=base.guidance if guidance is None else guidance,
                seed=choose_seed(None, fresh=True) if seed is None else seed,
                width=width or base.native[0],
                height=height or base.native[1],
                mix=adapters or {},
            )
            sample = self.studio.engine.generate(recipe)
            name = self.studio.pictures.save(sample.image, sample.record)
        except ShiraError as error:
            raise told(error) from error
        return _file(self.studio.pictures.path(name)), _plain(sample.record)

    def compare(
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
        base = self.studio.engine.base
        try:
            recipe = Recipe(
                prompt=prompt,
                steps=base.steps if steps is None else steps,
                guidance=base.guidance if guidance is None else guidance,
                seed=seed,
                width=base.native[0],
                height=base.native[1],
            )
            choices = Choice(a, strength_a), Choice(b, strength_b)
            plan = compare.plan(self.studio.library, recipe, *choices)
            name = self.studio.grids.begin(plan, self.studio.library)
            job = wait(self.studio.worker, runner.submit(self.studio.worker, name).id).job
            if job.error:
                raise JobError(job.error)
            grid = self.studio.grids.open(name)
        except ShiraError as error:
            raise told(error) from error
        return _file(grid.folder / SHEET_FILE), [
            _cell(grid, index) for index in range(len(grid.cells))
        ]


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


def build(studio: Studio) -> None:
    """Name the endpoints."""
    endpoints = Endpoints(studio)
    gr.api(endpoints.adapters, api_name="adapters")
    gr.api(endpoints.generate, api_name="generate", **MODEL)
    gr.api(endpoints.compare, api_name="compare", concurrency_limit=None)
