"""A base that is handed to run after run comes out of each as it went in."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from evaluation import peft_shira
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.formats import container, read_info
from training import methods
from training.base import Base
from training.export import ADAPTER
from training.methods import Create
from training.prior import Prior
from training.run import run
from training.run_folder import RunFolder
from training.settings import load_config
from training.texts import TEXT_ENCODERS

torch.set_num_threads(1)

RUNS: dict[str, list[str]] = {
    "shira": ["method=shira"],
    "lora": ["method=lora"],
    "dora": ["method=dora"],
    "symlora": ["method=symlora"],
    "shira-dora": ["method=shira-dora", "rank=2"],
    "grad": ["method=shira", "mask=grad", "calibration_batches=1"],
    "checkpointing": ["method=lora", "gradient_checkpointing=true"],
    "texts": ["method=shira", "train_text_encoders=true"],
    "peft-shira": ["method=shira"],
    "prior": ["method=lora", "prior_prompts=a castle", "prior_images=1", "prior_steps=1"],
    "sampled": ["method=dora", "sample_every=1", "sample_steps=1"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "ink"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a castle, ink style")
    return folder


@pytest.fixture(scope="module")
def kept(toy_base: Path) -> Base:
    """The base that all runs of this file get."""
    base = Base.load(str(toy_base), "cpu", torch.float32)
    # What its libraries note down when they are first used is no run's doing.
    base.pipe.encode_prompt("a castle")
    base.pipe.unet.disable_gradient_checkpointing()
    return base


def adapter(name: str, images: Path, source: Path, out: Path, base: Base | None) -> Path:
    """Train two steps and return the adapter's file."""
    shutil.rmtree(out, ignore_errors=True)
    place = [f"run={out}/run", f"adapters_dir={out}", f"cache_dir={out}/cache", "device=cpu"]
    few = ["steps=2", "batch=1", "sample_steps=0", "checkpoint_every=0", "precision=fp32"]
    given = [f"data={images}", "name=x", f"base={source}", "density=0.1", *few, *place]
    config = load_config("quick", [*given, *RUNS[name]])
    create: Create = peft_shira.create if name == "peft-shira" else methods.create
    outcome = run(config, Console(quiet=True), create=create, base=base)
    assert outcome.adapter is not None
    return outcome.adapter / ADAPTER


def everything(base: Base) -> dict[str, Any]:
    """All that a run could leave behind: tensors, layers, hooks, attributes, modes, flags."""
    found: dict[str, Any] = {}
    for component in ("unet", "vae", *TEXT_ENCODERS):
        module: nn.Module = getattr(base.pipe, component)
        found |= {f"{component}.{key}": tensor for key, tensor in module.state_dict().items()}
        for name, part in module.named_modules():
            place = f"{component}.{name}"
            found[f"{place} class"] = type(part)
            found[f"{place} hooks"] = len(part._forward_hooks) + len(part._backward_hooks)
            found[f"{place} attributes"] = sorted(vars(part))
            found[f"{place} trains"] = part.training
            found[f"{place} checkpointing"] = getattr(part, "gradient_checkpointing", None)
            for own, weight in part.named_parameters(recurse=False):
                hooks = weight._post_accumulate_grad_hooks or {}
                found[f"{place} {own} gradient"] = (weight.grad is None, len(hooks))
                found[f"{place} {own} asks for one"] = weight.requires_grad
    return found


def differing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        same = (
            torch.equal(old, new)
            if isinstance(old, Tensor) and isinstance(new, Tensor)
            else old == new
        )
        if not same:
            yield f"{key}: {old} is {new}"


@pytest.mark.parametrize("name", RUNS)
def test_a_base_is_left_as_it_was(
    name: str, images: Path, toy_base: Path, tmp_path: Path, kept: Base
) -> None:
    before = {
        key: one.clone() if isinstance(one, Tensor) else one
        for key, one in everything(kept).items()
    }
    found = container.read(adapter(name, images, toy_base, tmp_path / "kept", kept))
    assert not list(differing(before, everything(kept)))
    fresh = container.read(adapter(name, images, toy_base, tmp_path / "fresh", None))
    assert found.tensors.keys() == fresh.tensors.keys()
    for key, tensor in found.tensors.items():
        assert torch.equal(tensor, fresh.tensors[key]), key


def test_nothing_is_drawn_or_saved_that_nobody_wants(
    images: Path, toy_base: Path, tmp_path: Path, kept: Base
) -> None:
    file = adapter("shira", images, toy_base, tmp_path, kept)
    assert sorted(path.name for path in file.parent.iterdir()) == [ADAPTER, "card.md"]
    assert "thumbnail" not in file.with_name("card.md").read_text()
    assert not (tmp_path / "run" / "samples").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "components"),
    [("shira", ["unet"]), ("texts", ["text_encoder", "text_encoder_2", "unet"])],
)
def test_every_trained_component_is_certified(
    name: str, components: list[str], images: Path, toy_base: Path, tmp_path: Path, kept: Base
) -> None:
    info = read_info(adapter(name, images, toy_base, tmp_path, None))
    assert info.base_fingerprint == {
        component: fingerprint(getattr(kept.pipe, component)) for component in components
    }


def test_runs_of_any_seed_share_class_images(
    images: Path, toy_base: Path, tmp_path: Path, kept: Base
) -> None:
    def train(seed: int) -> list[dict[str, Any]]:
        given = [
            f"data={images}",
            f"name=x{seed}",
            f"seed={seed}",
            f"base={toy_base}",
            f"run={tmp_path}/run{seed}",
            f"adapters_dir={tmp_path}/adapters",
            f"cache_dir={tmp_path}/cache",
            *("steps=1", "batch=1", "sample_steps=0", "checkpoint_every=0", "device=cpu"),
            *("prior_prompts=a castle", "prior_images=3", "prior_steps=2", "prior_batch=1"),
        ]
        config = load_config("quick", given)
        assert run(config, Console(quiet=True), base=kept).adapter is not None
        return RunFolder.of(config).log.find("prior")

    (first,) = train(0)
    drawn = sorted(Path(first["folder"]).glob("*.png"))
    assert [path.name for path in drawn] == ["0000.png", "0001.png", "0002.png"]
    times = [path.stat().st_mtime_ns for path in drawn]
    (second,) = train(1)
    assert first["folder"] == second["folder"]
    assert [path.stat().st_mtime_ns for path in drawn] == times


def test_others_wait_while_one_draws(tmp_path: Path) -> None:
    prior = Prior(("a castle",), count=1)
    folder = tmp_path / "cache" / "prior-x"
    waited = threading.Event()

    def wait() -> None:
        with prior.turn(folder):
            waited.set()

    other = threading.Thread(target=wait)
    with prior.turn(folder):
        other.start()
        assert not waited.wait(0.2)
    other.join()
    assert waited.is_set()
    folder.mkdir()
    (folder / "0000.png").touch()
    with prior.turn(folder), prior.turn(folder):  # nothing is missing, so nobody waits
        pass
