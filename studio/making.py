"""The work behind Generate: pictures of one recipe, seed after seed, each kept when it is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from PIL import Image

from shira_diffusion.errors import SettingError
from studio.engine import Engine
from studio.pictures import PictureStore
from studio.recipe import MAX_SEED, Recipe
from studio.steps import Step
from studio.worker import Task

KIND = "generate"
MAX_COUNT = 16


@dataclass(frozen=True)
class Making:
    """How far a job is: picture `number` of `count`, its last step, and the last look at it."""

    number: int
    count: int
    step: Step | None = None
    look: Image.Image | None = field(default=None, compare=False, repr=False)

    def after(self, step: Step) -> "Making":
        """How far it is then."""
        return replace(self, step=step, look=step.preview or self.look)


@dataclass(frozen=True)
class Order:
    """What was asked for: `count` pictures of `recipe`, the seed one higher for each."""

    recipe: Recipe
    count: int = 1

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 1 <= self.count <= MAX_COUNT:
            raise SettingError(
                f"The number of pictures has to be from 1 to {MAX_COUNT}, not {self.count!r:.60}."
            )

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipe of each picture."""
        first = self.recipe.seed
        seeds = ((first + number) % (MAX_SEED + 1) for number in range(self.count))
        return tuple(replace(self.recipe, seed=seed) for seed in seeds)

    def plain(self) -> dict[str, Any]:
        """The order as JSON values, for `read`."""
        return {"recipe": asdict(self.recipe), "count": self.count}

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Order":
        """The order that `plain` wrote."""
        return cls(Recipe(**settings["recipe"]), settings["count"])


@dataclass(frozen=True)
class PictureRunner:
    """Runs jobs of `KIND`; their results are the ids of pictures."""

    engine: Engine
    pictures: PictureStore

    def __call__(self, task: Task) -> None:
        """Make the pictures of the task's order."""
        order = Order.read(task.job.settings)
        for number, recipe in enumerate(order.recipes, start=1):
            watch = _Watch(task, Making(number, order.count))
            sample = self.engine.generate(recipe, on_step=watch, stop=task.stop)
            task.keep(self.pictures.save(sample.image, sample.record))


class _Watch:
    """Reports the steps of one picture."""

    def __init__(self, task: Task, begun: Making) -> None:
        self._task, self._making = task, begun
        task.report(begun)

    def __call__(self, step: Step) -> None:
        self._making = self._making.after(step)
        self._task.report(self._making)
