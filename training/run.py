"""One run from its settings to the finished adapter; all that can be refused is refused first."""

import dataclasses
import os
from pathlib import Path

from diffusers import StableDiffusionXLPipeline
from rich.console import Console

from shira_diffusion.pipeline import load_base, target_weights
from training.config import Config
from training.data import Dataset, read_folder, shared_words
from training.errors import ConfigError
from training.events import EventLog
from training.machine import Machine
from training.report import Report
from training.run_folder import RunFolder
from training.session import Outcome, Session


def run(
    config: Config, console: Console, *, resume: bool = False, stop_after: int | None = None
) -> Outcome:
    """Train and export as `config` says; after `stop_after` steps of this call save and stop.

    Raises `ShiraError`, before anything is written if the fault can be known by then.
    """
    machine = Machine.detect(config.device, config.precision)
    folder = RunFolder.of(config)
    folder.check(config, resume=resume)
    dataset = read_folder(
        Path(config.data),
        instance_prompt=config.instance_prompt,
        skip_unreadable=config.skip_unreadable,
    )
    config = _with_words(config, dataset)
    pipe = load_base(config.base, device=machine.device, dtype=machine.dtype)
    pipe.set_progress_bar_config(disable=True)
    side = _side(config, pipe)
    _check_fit(config, pipe, side, machine)
    report = Report(Console(quiet=True), EventLog(Path(os.devnull)))
    if machine.is_main:
        folder.begin(config, resume=resume)
        report = Report(console, folder.log)
    try:
        session = Session(config, machine, folder, dataset, pipe, side, report)
        return session.train(resume=resume, stop_after=stop_after)
    except Exception as error:
        report.log.write("failed", message=str(error))
        raise


def _with_words(config: Config, dataset: Dataset) -> Config:
    """Fill in the words that come from the captions where the settings have none."""
    shared = shared_words(dataset.captions)
    return dataclasses.replace(
        config,
        trigger_words=config.trigger_words or ((shared,) if shared else ()),
        sample_prompts=config.sample_prompts or dataset.captions[:1],
    )


def _side(config: Config, pipe: StableDiffusionXLPipeline) -> int:
    """Return the pictures' side in pixels: the one asked for, or the base's own."""
    return config.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor


def _check_fit(
    config: Config, pipe: StableDiffusionXLPipeline, side: int, machine: Machine
) -> None:
    target_weights(pipe.unet, config.targets)
    if side % 8:
        raise ConfigError(f"resolution = {side} is not a multiple of 8.")
    if config.batch < machine.world:
        raise ConfigError(
            f"batch = {config.batch} leaves some of the {machine.world} processes without work. "
            f"Set batch={machine.world} or more."
        )
