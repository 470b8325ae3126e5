"""The settings of a run: what they are called, what they mean, which values they take."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shira_diffusion import masks
from training.checks import (
    Check,
    at_least,
    each,
    is_decay,
    is_folder_name,
    is_hub_repo,
    is_new_word,
    is_part,
    is_rank,
    is_share,
    one_installed,
    one_of,
)

METHODS = ("shira", "lora", "dora", "symlora", "shira-dora")
SPARSE = ("shira", "shira-dora")
"""The methods whose adapter is a native file of single entries."""

MIXED = ("lora", "dora")
"""The methods that compute with trained values of another dtype than the base's."""

OPTIMIZERS = {
    "adamw": "torch",
    "adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "adafactor": "torch",
}
"""The optimizers and the package that each is from."""

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""The trackers and the package that each needs."""


def setting(default: Any, meaning: str, check: Check = lambda _: "", *, free: bool = False) -> Any:
    """Declare one setting.

    A `free` one may change when a run is resumed: it does not shape the training, or, as data and
    base, is compared by content.
    """
    metadata = {"meaning": meaning, "check": check, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Concept:
    """One of several things to learn in a run: a `[[concepts]]` table of the preset."""

    data: str = setting("", "folder of its images")
    instance_prompt: str = setting("", "caption of its images that have none")
    trigger: str = setting("", "its trigger words; what its captions share, when empty")
    repeats: int = setting(1, "how often its images come in a round", at_least(1))
    prior_prompts: tuple[str, ...] = setting((), "its class, which must stay as it is")


@dataclass(frozen=True)
class Config:
    """Every setting of a run, resolved: what is written to `config.json`."""

    data: str = setting(
        "", "folder of images with .txt captions (one a line) or metadata.jsonl", free=True
    )
    concepts: tuple[Concept, ...] = setting(
        (),
        "tables of several things to learn, in place of data",
    )
    name: str = setting(
        "",
        "the adapter's name; the data folder's, with the method unless it is shira",
        is_folder_name,
    )
    run: str = setting("", "run folder; runs/<name>", free=True)
    adapters_dir: str = setting("adapters", "where the finished adapter goes", free=True)
    cache_dir: str = setting("runs/cache", "latents, embeddings and class images", free=True)
    overwrite: bool = setting(False, "replace an adapter or run of the same name", free=True)
    base: str = setting("models/emoji-xl", "SDXL folder, .safetensors file or hub id", free=True)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...", free=True)

    title: str = setting("", "the adapter's title; its name", free=True)
    description: str = setting("", "one sentence on the adapter's card", free=True)
    author: str = setting("", "who made the adapter", free=True)
    license: str = setting("", "licence of the adapter", free=True)
    tags: tuple[str, ...] = setting((), "words to find the adapter by", free=True)
    trigger_words: tuple[str, ...] = setting((), "words all captions share, when empty", free=True)

    instance_prompt: str = setting("", "caption of the images that have none")
    skip_unreadable: bool = setting(False, "go on without images that cannot be read")
    size_conditioning: str = setting(
        "image",
        "SDXL's size numbers: each image's own, or the target's for a base that knows only that",
        one_of(("image", "target")),
    )
    resolution: int = setting(0, "side in pixels; 0 is the base's own", at_least(0))
    buckets: bool = setting(False, "images of other aspect ratios keep theirs, at the same area")
    flip: bool = setting(False, "train on mirror images, too")
    crops: int = setting(1, "random cuts of each image; 1 is the middle", at_least(1))

    loss_mask: str = setting(
        "off",
        "what of an image counts: masklabel reads NAME-masklabel.png beside NAME, white is all, "
        "alpha its transparency",
        one_of(("off", "masklabel", "alpha")),
    )
    unmasked_weight: float = setting(0.1, "how much the rest of a masked image counts", is_part)

    method: str = setting("shira", "how to adapt the weights", one_of(METHODS))
    targets: tuple[str, ...] = setting(("attention",), "groups of weights to adapt")
    blocks: tuple[str, ...] = setting(
        (), "parts of the UNet that are adapted, such as up_blocks.1; all of it when empty"
    )
    mask: str = setting("rand", "which entries are trained", one_of(masks.KINDS))
    density: float = setting(0.05, "share of the targets' entries that is trained", is_share)
    budget: str = setting(
        "layer",
        "layer gives each weight its share, global all together (the best scores anywhere)",
        one_of(("layer", "global")),
    )
    avoid: tuple[str, ...] = setting((), "adapter files whose entries are left to them")
    calibration_batches: int = setting(8, "batches that score the grad and snip masks", at_least(1))
    rank: int | str = setting(
        "match", "of the low-rank methods; match trains as many values as the sparse one", is_rank
    )
    alpha: float = setting(
        0.0, "of lora, dora and shira-dora; 0 means equal to the rank", at_least(0)
    )

    train_text_encoders: bool = setting(False, "adapt both text encoders, too")
    text_lr: float = setting(0.0, "learning rate of the text encoders; 0 is lr", at_least(0))
    new_token: str = setting(
        "", "a word to learn, such as <ink>, that the captions have (pivotal tuning)", is_new_word
    )
    token_vectors: int = setting(2, "embeddings of the new word", at_least(1))
    token_init: str = setting("", "a known word that the new one starts as; else at random")
    token_lr: float = setting(0.0, "learning rate of the new word; 0 is lr", at_least(0))

    steps: int = setting(200, "optimizer steps", at_least(1))
    batch: int = setting(4, "images of the data folder a step", at_least(1))
    accumulation: int = setting(1, "batches whose gradients make one step", at_least(1))
    optimizer: str = setting(
        "adamw", "what moves the values; prodigy wants lr = 1", one_installed(OPTIMIZERS)
    )
    lr: float = setting(1e-3, "learning rate", at_least(0))
    schedule: str = setting(
        "cosine",
        "learning rate over time",
        one_of(
            (
                "constant",
                "constant_with_warmup",
                "linear",
                "cosine",
                "cosine_with_restarts",
                "polynomial",
            )
        ),
    )
    schedule_cycles: int = setting(1, "how often cosine_with_restarts starts", at_least(1))
    warmup: int = setting(0, "steps over which the rate rises from 0", at_least(0))
    weight_decay: float = setting(0.0, "the optimizer's decay of the trained values", at_least(0))
    ema: float = setting(
        0.0, "decay of an average of the values, to export instead; 0 is off", is_decay
    )
    clip: float = setting(1.0, "largest gradient norm; 0 does not clip", at_least(0))
    seed: int = setting(0, "of mask, order, noise and timesteps", at_least(0))
    min_snr_gamma: float = setting(
        0.0, "evens out the noise levels' weights, the paper's is 5; 0 is off", at_least(0)
    )
    noise_offset: float = setting(
        0.0, "lets pictures be darker and brighter than the base's, 0.05 or so", at_least(0)
    )
    precision: str = setting(
        "auto", "bf16 on CUDA, else fp32", one_of(("auto", "fp32", "bf16", "fp16"))
    )
    gradient_checkpointing: bool = setting(False, "less memory, slower steps", free=True)
    save_memory: bool = setting(
        False,
        "draw pictures with little memory: in tiles, one part of the base at a time",
        free=True,
    )
    compile: bool = setting(
        False, "compile the UNet's blocks: a slow start, then faster steps", free=True
    )
    cuda_graphs: bool = setting(
        False, "replay a step's passes as one CUDA graph, for hosts that launch slowly", free=True
    )

    prior_prompts: tuple[str, ...] = setting((), "what the base must not forget")
    prior_images: int = setting(32, "class images of each class that the base draws", at_least(1))
    prior_batch: int = setting(2, "class images a step", at_least(1))
    prior_weight: float = setting(1.0, "weight of the class images' loss; 0 is off", at_least(0))
    prior_steps: int = setting(14, "denoising steps of a class image", at_least(1))
    prior_guidance: float = setting(3.0, "guidance of a class image", at_least(0))

    sample_prompts: tuple[str, ...] = setting((), "what samples show; first caption", free=True)
    sample_every: int = setting(
        0, "steps between samples; 0 is only at the end", at_least(0), free=True
    )
    sample_steps: int = setting(
        22, "denoising steps of a sample; 0 draws none, nor a thumbnail", at_least(0), free=True
    )
    sample_guidance: float = setting(3.0, "guidance of a sample", at_least(0), free=True)
    sample_seed: int = setting(
        1000, "of the first sample; the next counts on", at_least(0), free=True
    )

    trackers: tuple[str, ...] = setting(
        (),
        "programs that draw the curves: tensorboard, wandb",
        each(one_installed(TRACKERS)),
        free=True,
    )
    hub_repo: str = setting(
        "",
        "repository on the hub that the adapter is sent to, user/adapter",
        is_hub_repo,
        free=True,
    )
    hub_private: bool = setting(True, "whether only you see a repository made for it", free=True)
    checkpoint_every: int = setting(
        50, "steps between checkpoints; 0 is only when the run is stopped", at_least(0), free=True
    )
    keep_checkpoints: int = setting(2, "how many checkpoints stay", at_least(1), free=True)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of images that are trained on."""
        return tuple(concept.data for concept in self.concepts) or (self.data,)

    @property
    def classes(self) -> tuple[tuple[str, ...], ...]:
        """The prompts of every class whose images are drawn by the base, all different."""
        classes = (self.prior_prompts, *(concept.prior_prompts for concept in self.concepts))
        return tuple(dict.fromkeys(prompts for prompts in classes if prompts))

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates by their settings, each 0 replaced by lr."""
        return {key: getattr(self, key) or self.lr for key in ("lr", "text_lr", "token_lr")}

    @property
    def texts_train(self) -> bool:
        """Whether the text encoders' results change from step to step, so that none is kept."""
        return self.train_text_encoders or bool(self.new_token)

    @property
    def keeps_prior(self) -> bool:
        """Whether class images of the base are trained on, too."""
        return bool(self.classes) and self.prior_weight > 0


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
CONCEPT_FIELDS = {field.name: field for field in dataclasses.fields(Concept)}


def resolve(config: Config) -> Config:
    """Fill in the names that follow from other settings."""
    suffix = "" if config.method == "shira" else f"-{config.method}"
    name = config.name or Path(config.data).resolve().name + suffix
    run = config.run or str(Path("runs") / name)
    return dataclasses.replace(config, name=name, run=run, title=config.title or name)
