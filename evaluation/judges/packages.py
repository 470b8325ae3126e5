"""Judges that come as packages of their own: HPSv2 and LPIPS."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluation.errors import JudgeError
from evaluation.judges.base import Drawn, Scores, mean_distance


class HumanPreference:
    """HPSv2 (https://arxiv.org/abs/2306.09341): how much people would like it, as `hpsv2`."""

    def __init__(self, package: Any) -> None:
        self._package = package

    @classmethod
    def load(cls, _: torch.device) -> "HumanPreference":
        """Load the package `hpsv2`, which fetches its own weights and chooses its own device."""
        return cls(package("hpsv2"))

    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the scores of each picture; raises `JudgeError` without the weights."""
        try:
            return [
                {
                    "hpsv2": float(
                        self._package.score(drawn.image, drawn.prompt, hps_version="v2.1")[0]
                    )
                }
                for drawn in pictures
            ]
        except OSError as error:
            raise JudgeError(f"the weights of hpsv2 cannot be fetched: {error}") from error


class PerceptualDiversity:
    """LPIPS (https://arxiv.org/abs/1801.03924) of a prompt's pictures, as `lpips_diversity`."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device

    @classmethod
    def load(cls, device: torch.device) -> "PerceptualDiversity":
        """Load the package `lpips` with its AlexNet."""
        try:
            network = package("lpips").LPIPS(net="alex", verbose=False)
        except OSError as error:
            raise JudgeError(f"the weights of lpips cannot be fetched: {error}") from error
        return cls(network.to(device).eval(), device)

    @torch.no_grad()
    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the mean distance of each picture to the others of its prompt."""
        pixels = [np.asarray(drawn.image.convert("RGB"), dtype=np.float32) for drawn in pictures]
        images = [torch.from_numpy(one).permute(2, 0, 1) / 127.5 - 1 for one in pixels]
        prompts = [drawn.prompt for drawn in pictures]
        distances = torch.zeros(len(images), len(images))
        for row, one in enumerate(images):
            for column in range(row):
                if prompts[row] == prompts[column]:
                    both = one[None].to(self._device), images[column][None].to(self._device)
                    distances[row, column] = distances[column, row] = self._network(*both).item()
        return [
            {} if spread is None else {"lpips_diversity": round(spread, 5)}
            for spread in mean_distance(distances, prompts)
        ]


def package(name: str) -> Any:
    """Import a judge's package; raises `JudgeError` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise JudgeError(f"this judge needs a package: pip install {name}") from error
