"""A run whose settings, data and base have been found good: prepare, train, export."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from shira_diffusion import hub
from training import methods
from training.base import Base
from training.batches import Batches
from training.calibration import gradients
from training.config import MIXED, Config
from training.data import Dataset
from training.export import Destination, card_of, describe
from training.interrupt import graceful_stop
from training.lodging import text_encoders
from training.loop import Loop, StepResult
from training.machine import Machine
from training.methods import Create, Together
from training.objective import Objective
from training.preparation import Preparation
from training.prepare import check_origin, origin
from training.recompute import keep_little
from training.report import Report
from training.run_folder import RunFolder
from training.sampling import Sampler
from training.texts import TEXT_ENCODERS, kept, live
from training.trackers import tracking


@dataclass(frozen=True)
class Outcome:
    """The adapter's folder when a run is finished, else whether someone stopped it."""

    adapter: Path | None
    interrupted: bool = False


class Session:
    """Holds what one run works with; `train` does the run."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        folder: RunFolder,
        dataset: Dataset,
        base: Base,
        side: int,
        report: Report,
        create: Create = methods.create,
    ) -> None:
        self._create = create
        self._config = config
        self._machine = machine
        self._folder = folder
        self._dataset = dataset
        self._pipe = base.pipe
        self._side = side
        self._report = report
        self._base = base.mark("unet")
        trained = ("unet", *(TEXT_ENCODERS if config.train_text_encoders else ()))
        self._marks = {component: base.mark(component) for component in trained}

    def train(self, *, resume: bool, stop_after: int | None) -> Outcome:
        """Prepare, do the steps that are left, and export when none is."""
        stored = self._stored() if resume else None
        self._announce(resume)
        objective = Objective.of(
            self._pipe,
            self._machine,
            min_snr_gamma=self._config.min_snr_gamma,
            noise_offset=self._config.noise_offset,
            mixed=self._config.method in MIXED,
            texts=live(self._pipe) if self._config.texts_train else kept,
        )
        batches = self._prepare(objective.train_timesteps)
        method = self._method(objective, batches, stored)
        try:
            with closing(
                Loop(self._config, method, objective, batches, self._machine, self._report.warn)
            ) as loop:
                if stored:
                    loop.restore(stored)
                interrupted = self._steps(loop, stop_after)
                if loop.step < self._config.steps:
                    self._say_stopped(loop.step)
                    return Outcome(None, interrupted)
                with loop.averaged():
                    return Outcome(self._export(method, resume))
        finally:
            method.close()
            self._pipe.unet.disable_gradient_checkpointing()

    def _announce(self, resume: bool) -> None:
        config, images = self._config, self._dataset.files
        for remark in self._dataset.remarks:
            self._report.warn(remark)
        self._report.note(
            f"{config.name}: {config.method} on {images} images of "
            f"{', '.join(config.folders)}, trigger words "
            f"{', '.join(config.trigger_words) or '(none)'}, run folder {self._folder.path}",
            "resumed" if resume else "started",
            name=config.name,
            method=config.method,
            images=images,
            steps=config.steps,
        )

    def _prepare(self, train_timesteps: int) -> Batches:
        """Encode the data, then bring what is trained, and that alone, to the device."""
        config, pipe = self._config, self._pipe
        preparation = Preparation(config, self._machine, pipe, self._side, self._base, self._report)
        batches = preparation.batches(self._dataset.images, train_timesteps)
        trained = [pipe.unet, *(text_encoders(pipe) if config.texts_train else [])]
        for module in trained:
            module.to(self._machine.device)
        if config.compile:
            pipe.unet.compile_repeated_blocks()
        return batches

    def _method(
        self, objective: Objective, batches: Batches, stored: Mapping[str, Any] | None
    ) -> Together:
        config, pipe = self._config, self._pipe
        if config.gradient_checkpointing:
            keep_little(pipe.unet)
        calibrate = partial(
            gradients,
            objective=objective,
            batches=batches,
            count=config.calibration_batches,
            machine=self._machine,
        )
        state = stored["method"] if stored else None
        method = methods.create_all(config, pipe, calibrate, state, self._create)
        trained = sum(values.numel() for values in method.parameters())
        self._report.note(f"{trained:,} values are trained", "method", trained=trained)
        return method

    def _steps(self, loop: Loop, stop_after: int | None) -> bool:
        """Train, log, sample and save until all is done or someone wants to stop; say if so."""
        config = self._config
        last = config.steps if stop_after is None else min(config.steps, loop.step + stop_after)
        if loop.step >= last:
            return False
        trackers = config.trackers if self._machine.is_main else ()
        with (
            self._memory_logged(),
            graceful_stop(self._say_stopping) as wish,
            self._report.bar("training", config.steps, loop.step) as advance,
            tracking(trackers, config, self._folder.curves, self._report.warn) as track,
        ):
            for result in loop.run():
                self._log(result)
                track(result)
                advance(result.step, f"loss {result.loss:.4f}, {result.seconds:.2f} s/step")
                stopping = wish.asked or result.step == last
                if self._saves(result.step, stopping):
                    self._save(loop)
                if stopping:
                    return wish.asked
                if config.sample_every and result.step % config.sample_every == 0:
                    with loop.averaged():
                        self._samples(result.step)
        return False

    def _saves(self, step: int, stopping: bool) -> bool:
        """Whether a checkpoint is due: now and then, at the end, and when someone stops the run."""
        every = self._config.checkpoint_every
        if not every:
            return stopping and step < self._config.steps
        return stopping or step % every == 0

    @contextmanager
    def _memory_logged(self) -> Iterator[None]:
        """Log the most memory that preparing took and, afterwards, that the block took."""
        self._log_memory("preparing")
        try:
            yield
        finally:
            self._log_memory("training")

    def _log_memory(self, stage: str) -> None:
        peak = self._machine.peak_memory()
        if peak:
            self._report.log.write("memory", stage=stage, **peak)

    def _say_stopping(self) -> None:
        self._report.console.print("stopping after this step; once more to stop at once")

    def _say_stopped(self, step: int) -> None:
        self._report.note(
            f"stopped and saved after step {step} of {self._config.steps}; the same command with "
            "--resume goes on from here",
            "stopped",
            step=step,
        )

    def _log(self, result: StepResult) -> None:
        self._report.log.write(
            "step",
            step=result.step,
            loss=round(result.loss, 6),
            lr=result.lr,
            seconds=round(result.seconds, 4),
        )

    def _save(self, loop: Loop) -> None:
        if self._machine.is_main:
            self._folder.checkpoints.save(loop.step, loop.state() | self._origin())
            self._report.log.write("checkpoint", step=loop.step)

    def _origin(self) -> dict[str, str]:
        return origin(self._base, self._dataset)

    def _stored(self) -> dict[str, Any]:
        stored = self._folder.checkpoints.load()
        check_origin(stored, self._origin(), self._config)
        return stored

    def _samples(self, step: int) -> Image.Image | None:
        """Draw the sample prompts with the adapter on and return the first picture.

        Whatever goes wrong here is a warning: no sample is worth a run.
        """
        config = self._config
        if not self._machine.is_main or not config.sample_steps:
            return None
        seeds = [config.sample_seed + number for number in range(len(config.sample_prompts))]
        size = (self._side, self._side)
        sampler = Sampler(
            self._pipe,
            self._machine,
            size,
            config.sample_steps,
            config.sample_guidance,
            tiled=config.save_memory,
        )
        pictures: list[Image.Image] = []
        try:
            for prompt, seed in zip(config.sample_prompts, seeds, strict=True):
                pictures += sampler.draw([prompt], [seed])
                path = self._folder.samples / f"step-{step:06d}-{seed}.png"
                sampler.save(pictures[-1], path, prompt=prompt, seed=seed)
                self._report.log.write("sample", step=step, file=path.name, prompt=prompt)
        except Exception as error:  # noqa: BLE001
            self._report.warn(f"samples of step {step} are missing: {error}")
        return pictures[0] if pictures else None

    def _export(self, method: Together, resume: bool) -> Path | None:
        if not self._machine.is_main:
            return None
        config = self._config
        info = describe(config, self._dataset, self._marks, method.facts())
        thumbnail = self._samples(config.steps)
        card = card_of(info, config, self._dataset, pictured=thumbnail is not None)
        replace = self._folder.may_replace(config, resume=resume)
        destination = Destination(self._folder.adapter(config), replace)
        folder = destination.publish(method, info, card, thumbnail)
        self._report.note(
            f"the adapter is in {folder}; try it with: "
            f"python app.py --base {config.base} --adapters {config.adapters_dir}",
            "finished",
            adapter=str(folder.resolve()),
        )
        if config.hub_repo:
            self._upload(folder)
        return folder

    def _upload(self, folder: Path) -> None:
        """Send the adapter to the hub; a failure is a warning that says how to do it by hand."""
        repo = self._config.hub_repo
        try:
            address = hub.push(hub.pack(folder, repo), repo, private=self._config.hub_private)
        except Exception as error:  # noqa: BLE001
            self._report.warn(
                f"the adapter is not on the hub ({error}). It is safe in {folder}; send it with "
                f"`shira push {folder} {repo}`"
            )
            return
        self._report.note(f"the adapter is at {address}", "uploaded", address=address)
