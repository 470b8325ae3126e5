"""The ways of adapting a base, behind one small interface."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from torch import Tensor, nn

from shira_diffusion.pipeline import TARGETS, target_weights
from training.config import Config
from training.errors import ConfigError
from training.methods.base import Gradients, Method, Trainable
from training.methods.entries import UNET, choose_indices
from training.methods.lora import Lora
from training.methods.ranks import Count, dora_count, lora_count, matching_rank, symlora_count
from training.methods.shira import Shira
from training.methods.shira_dora import ShiraDora
from training.methods.symlora import SymLora
from training.methods.together import Together
from training.methods.tokens import TrainedWord, add_word, remove_word
from training.texts import TEXT_ENCODERS, inner

__all__ = ["Create", "Gradients", "Method", "Together", "Trainable", "create", "create_all"]

Weights = dict[str, nn.Parameter]
Indices = Callable[[], dict[str, Tensor]]
Create = Callable[[Config, nn.Module, Gradients, Mapping[str, Any] | None], Method]
"""Prepares a method on a UNet, as `create` does."""


def create(
    config: Config, unet: nn.Module, gradients: Gradients, stored: Mapping[str, Any] | None
) -> Method:
    """Prepare the configured method on `unet`, as it was when `stored` was its state, if given."""
    weights = target_weights(unet, config.targets, config.blocks)
    return _start(config, unet, weights, gradients, stored, UNET)


def create_all(
    config: Config,
    pipe: StableDiffusionXLPipeline,
    gradients: Gradients,
    stored: Mapping[str, Any] | None,
    create_unet: Create = create,
) -> Together:
    """Prepare all that the settings train in `pipe`: its UNet, text encoders and a new word.

    As it was when `stored` was its state, if that is given. `create_unet` is `create`, or what
    somebody compares with it.
    """
    if stored and UNET not in stored:  # of a run from when there was the UNet alone
        stored = {UNET: stored}
    undo: Callable[[], None] = lambda: None  # noqa: E731
    rows: Mapping[str, list[int]] = {}
    if config.new_token:
        word, count = config.new_token, config.token_vectors
        rows = add_word(pipe, word, count, config.token_init, config.seed)
        undo = partial(remove_word, pipe, word, count)
    for component in TEXT_ENCODERS:
        getattr(pipe, component).requires_grad_(False)
    parts: dict[str, Trainable] = {}

    def state(place: str) -> Any:
        return stored[place] if stored else None

    if config.train_text_encoders:
        for component in TEXT_ENCODERS:
            place = f"{component}.text_model.encoder"
            module = inner(getattr(pipe, component), "encoder")
            weights = _text_weights(config, component, module)
            if not weights:
                continue
            parts[place] = _start(config, module, weights, gradients, state(place), place)
    for component, some in rows.items():
        place = f"{component}.text_model.embeddings"
        parts[place] = TrainedWord(inner(getattr(pipe, component), "embeddings"), some)
        if stored:
            parts[place].restore(stored[place])
    unet = create_unet(config, pipe.unet, gradients, state(UNET))
    return Together({UNET: unet, **parts}, undo)


def _start(
    config: Config,
    module: nn.Module,
    weights: Weights,
    gradients: Gradients,
    stored: Mapping[str, Any] | None,
    place: str,
) -> Method:
    module.requires_grad_(False)

    def indices() -> dict[str, Tensor]:
        return stored["indices"] if stored else choose_indices(config, weights, gradients, place)

    method = _build(config, module, weights, indices)
    if stored:
        method.restore(stored)
    return method


def _text_weights(config: Config, component: str, module: nn.Module) -> Weights:
    """Return the targets that a text encoder has, but for layers that nothing is read from."""
    present = [
        group
        for group in config.targets
        if group in TARGETS
        and any(TARGETS[group].fullmatch(name) for name, _ in module.named_parameters())
    ]
    if not present:
        raise ConfigError(
            f"train_text_encoders: a text encoder has none of the targets "
            f"{', '.join(config.targets)}. Add attention or feed_forward to them."
        )
    weights = target_weights(module, present)
    if component == "text_encoder_2":
        return weights
    # Of the first encoder SDXL reads the layer before the last.
    unread = f"layers.{len(module.get_submodule('layers')) - 1}."  # type: ignore[arg-type]
    return {name: weight for name, weight in weights.items() if not name.startswith(unread)}


def _build(config: Config, module: nn.Module, weights: Weights, indices: Indices) -> Method:
    seed = config.seed
    match config.method:
        case "shira":
            return Shira(module, indices())
        case "lora":
            return Lora(module, _peft_settings(config, weights, lora_count), seed=seed)
        case "dora":
            settings = _peft_settings(config, weights, dora_count, use_dora=True)
            return Lora(module, settings, seed=seed)
        case "symlora":
            return SymLora(module, weights, _rank(config, weights, symlora_count), seed=seed)
    assert config.method == "shira-dora", config.method
    assert isinstance(config.rank, int), "settings that leave it open are refused"
    return ShiraDora(module, indices(), config.rank, config.alpha or config.rank, seed=seed)


def _rank(config: Config, weights: Weights, count: Count) -> int:
    if isinstance(config.rank, int):
        return config.rank
    return matching_rank(weights.values(), config.density, count)


def _peft_settings(config: Config, weights: Weights, count: Count, **more: Any) -> LoraConfig:
    rank = _rank(config, weights, count)
    modules = [name.removesuffix(".weight") for name in weights]
    return LoraConfig(
        r=rank,
        lora_alpha=config.alpha or rank,
        target_modules=modules,
        init_lora_weights=True,
        **more,
    )
