"""A tiny SDXL pipeline with random weights: what most tests run on."""

import os
from collections.abc import Iterator
from pathlib import Path

# Read when torch is imported: idle OpenMP threads that spin starve a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from emoji_xl.architecture import TOY, build_pipeline, save_pipeline
from emoji_xl.vocabulary import learn_tokenizer

WORDS = ["a red apple, noto style", "a blue whale, twemoji style", "a happy robot", "a castle"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try a browser test again: on a busy machine a page may not be ready for the first click."""
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=2))


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """A file's tests share a process, and so do all that drive a browser: one needs its cores."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "browser" if "test_browser_" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def exact_small_numbers() -> Iterator[None]:
    """Loading a base on the CPU flushes denormals process-wide; the next test wants them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SDXL pipeline in diffusers' format: 32 x 32 px, fp16 safetensors."""
    folder = tmp_path_factory.mktemp("base") / "toy-xl"
    tokenizer = learn_tokenizer(WORDS, tokens=640, prompt_tokens=TOY.prompt_tokens)
    save_pipeline(build_pipeline(TOY, tokenizer), folder)
    return folder


@pytest.fixture
def toy_pipe(toy_base: Path) -> StableDiffusionXLPipeline:
    """A fresh copy of the tiny pipeline, fp32 on the CPU."""
    pipe = StableDiffusionXLPipeline.from_pretrained(toy_base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
