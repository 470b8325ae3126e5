"""The settings of a run: a frozen dataclass, read from a TOML preset and `key=value` overrides.

A preset holds settings at its top level. A table named after a method (`[shira]`, `[lora]`) holds
what differs for that method and wins over the top level; overrides win over both. All faults are
reported together.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from shira_diffusion import masks
from training.errors import ConfigError, bullets

METHODS = ("shira", "lora")
PRESETS = Path(__file__).parent / "presets"


Check = Callable[[Any], str]
"""Says what is wrong with a value of the right type; an empty text when nothing is."""


def at_least(low: float) -> Check:
    """Return the check of a number that may not be below `low`."""
    return lambda value: "" if math.isfinite(value) and value >= low else f"is not >= {low:g}"


def one_of(choices: Sequence[str]) -> Check:
    """Return the check of a word out of `choices`."""
    return lambda value: (
        "" if value in choices else f"is not one of {', '.join(choices)}{_nearest(value, choices)}"
    )


def is_share(value: float) -> str:
    """Check a share of a whole."""
    return "" if 0 < value <= 1 else "is not above 0 and at most 1"


def is_rank(value: int | str) -> str:
    """Check a LoRA rank."""
    return "" if value == "match" or (isinstance(value, int) and value > 0) else "is not a rank"


def is_folder_name(value: str) -> str:
    """Check a name that becomes a folder."""
    plain = not value.startswith(".") and not set(value) & set('/\\:*?"<>|')
    return (
        "" if plain else 'is not a plain folder name (no leading dot, none of / \\ : * ? " < > |)'
    )


def setting(default: Any, meaning: str, check: Check = lambda _: "", *, free: bool = False) -> Any:
    """Declare one setting.

    A `free` one may change when a run is resumed: it does not shape the training, or, as data and
    base, is compared by content.
    """
    metadata = {"meaning": meaning, "check": check, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every setting of a run, resolved: what is written to `config.json`."""

    data: str = setting("", "folder of images with .txt captions or metadata.jsonl", free=True)
    name: str = setting(
        "", "the adapter's name; the data folder's name, for lora with -lora", is_folder_name
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

    method: str = setting("shira", "how to adapt the weights", one_of(METHODS))
    targets: tuple[str, ...] = setting(("attention",), "groups of weights to adapt")
    mask: str = setting("rand", "which entries are trained", one_of(masks.KINDS))
    density: float = setting(0.05, "share of the targets' entries that is trained", is_share)
    calibration_batches: int = setting(8, "batches that score the grad and snip masks", at_least(1))
    rank: int | str = setting(
        "match", "LoRA rank; match has as many weights as the sparse one", is_rank
    )
    alpha: float = setting(0.0, "LoRA alpha; 0 means equal to the rank", at_least(0))

    steps: int = setting(200, "optimizer steps", at_least(1))
    batch: int = setting(4, "images of the data folder a step", at_least(1))
    accumulation: int = setting(1, "batches whose gradients make one step", at_least(1))
    lr: float = setting(1e-3, "learning rate", at_least(0))
    schedule: str = setting(
        "cosine",
        "learning rate over time",
        one_of(("constant", "constant_with_warmup", "linear", "cosine", "polynomial")),
    )
    warmup: int = setting(0, "steps over which the rate rises from 0", at_least(0))
    weight_decay: float = setting(0.0, "AdamW's decay of the trained values", at_least(0))
    clip: float = setting(1.0, "largest gradient norm; 0 does not clip", at_least(0))
    seed: int = setting(0, "of mask, order, noise and timesteps", at_least(0))
    precision: str = setting("auto", "bf16 on CUDA, else fp32", one_of(("auto", "fp32", "bf16")))
    gradient_checkpointing: bool = setting(False, "less memory, slower steps", free=True)

    prior_prompts: tuple[str, ...] = setting((), "what the base must not forget")
    prior_images: int = setting(32, "class images made from prior_prompts by the base", at_least(1))
    prior_batch: int = setting(2, "class images a step", at_least(1))
    prior_weight: float = setting(1.0, "weight of the class images' loss; 0 is off", at_least(0))
    prior_steps: int = setting(14, "denoising steps of a class image", at_least(1))
    prior_guidance: float = setting(4.0, "guidance of a class image", at_least(0))

    sample_prompts: tuple[str, ...] = setting((), "what samples show; first caption", free=True)
    sample_every: int = setting(
        0, "steps between samples; 0 is only at the end", at_least(0), free=True
    )
    sample_steps: int = setting(22, "denoising steps of a sample", at_least(1), free=True)
    sample_guidance: float = setting(4.0, "guidance of a sample", at_least(0), free=True)
    sample_seed: int = setting(
        1000, "of the first sample; the next counts on", at_least(0), free=True
    )

    checkpoint_every: int = setting(50, "steps between checkpoints", at_least(1), free=True)
    keep_checkpoints: int = setting(2, "how many checkpoints stay", at_least(1), free=True)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPES = get_type_hints(Config)


def load_config(preset: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a preset (a file, or the name of one of ours) and apply `key=value` overrides.

    Raises `ConfigError` that lists all faults at once.
    """
    path = find_preset(preset)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The preset {path} is not valid TOML: {error}.") from error
    by_method = {name: table.pop(name) for name in METHODS if isinstance(table.get(name), dict)}
    faults = _Faults()
    given = {key: faults.parse(f"--set {text}", text) for text in overrides for key in [_key(text)]}
    settings = faults.check(str(path), table)
    tables = {name: faults.check(f"{path} [{name}]", by_method[name]) for name in by_method}
    given = {key: value for key, value in given.items() if value is not None}
    method = given.get("method", settings.get("method", Config.method))
    settings |= tables.get(method, {}) | given
    if not settings.get("data"):
        faults.messages.append("data is missing: name the image folder with --set data=FOLDER")
    if method == "shira" and settings.get("weight_decay"):
        faults.messages.append(
            "weight_decay must be 0 with shira: it would pull at the weights, not at their change"
        )
    if faults.messages:
        raise ConfigError(bullets("The settings have faults:", faults.messages))
    return _resolve(Config(**settings))


def find_preset(preset: str | Path) -> Path:
    """Return the file of a preset given as a path or as the name of one that ships."""
    path = Path(preset)
    shipped = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if path.is_file():
        return path
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in PRESETS.glob("*.toml"))
    raise ConfigError(
        f"There is no preset {preset}{_nearest(path.stem, names)}. Presets: {', '.join(names)}."
    )


def to_json(config: Config) -> str:
    """Return the resolved settings as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """Say which settings that shape the training differ from those of the run's `config.json`."""
    after = json.loads(to_json(config))
    return [
        f"{key} was {before.get(key)!r}, now {after[key]!r}"
        for key, field in FIELDS.items()
        if not field.metadata["free"] and before.get(key) != after[key]
    ]


def describe_settings() -> str:
    """List every key with its default and meaning, for `--help`."""
    lines = [
        f"  {key} = {_plain(field.default)}: {field.metadata['meaning']}"
        for key, field in FIELDS.items()
    ]
    return "\n".join(["settings:", *lines])


def _plain(value: Any) -> str:
    return json.dumps(value)


def _key(text: str) -> str:
    return text.partition("=")[0].strip()


def _resolve(config: Config) -> Config:
    suffix = "-lora" if config.method == "lora" else ""
    name = config.name or Path(config.data).resolve().name + suffix
    run = config.run or str(Path("runs") / name)
    return dataclasses.replace(config, name=name, run=run, title=config.title or name)


class _Faults:
    """Checks settings one by one and collects what is wrong with them."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, source: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the valid entries of a TOML table, converted to the settings' types."""
        checked = {key: self._value(source, key, value) for key, value in table.items()}
        return {key: value for key, value in checked.items() if value is not None}

    def parse(self, source: str, text: str) -> Any:
        """Return the value of one `key=value` override, or None after noting its fault."""
        key, equals, raw = text.partition("=")
        key, raw = key.strip(), raw.strip()
        if not equals:
            self.messages.append(f"{source}: write it as key=value")
            return None
        return self._value(source, key, _literal(raw, TYPES.get(key, str)))

    def _value(self, source: str, key: str, value: Any) -> Any:
        field = FIELDS.get(key)
        if field is None:
            self.messages.append(f"{source}: there is no setting {key}{_nearest(key, FIELDS)}")
            return None
        converted = _convert(value, TYPES[key])
        fault = (
            f"is not {_describe(TYPES[key])}"
            if converted is None
            else field.metadata["check"](converted)
        )
        if fault:
            self.messages.append(f"{source}: {key} = {_plain(value)} {fault}")
            return None
        return converted


def _literal(raw: str, kind: Any) -> Any:
    """Read the text of an override the way the setting's type wants it."""
    if kind is str:
        return raw
    if get_origin(kind) is tuple and not raw.startswith("["):
        return [raw]
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or None when it is of another type."""
    if isinstance(kind, types.UnionType):
        options = (_convert(value, option) for option in get_args(kind))
        return next((option for option in options if option is not None), None)
    if get_origin(kind) is tuple:
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        return tuple(value) if words else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else None


def _describe(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if isinstance(kind, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    return names.get(kind, "a list of texts")


def _nearest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
