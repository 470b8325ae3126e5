"""Everything that decides a picture: the words, the numbers, the mix and when it works."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shira_diffusion.errors import SettingError
from studio.timing import Timing

MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEED = 2**32 - 1
MAX_PROMPT = 4000
MIN_STRENGTH, MAX_STRENGTH = -1.0, 2.0


@dataclass(frozen=True)
class Recipe:
    """The settings of one picture; sizes in pixels, `mix` maps adapter names to strengths.

    `timing` says when an adapter works if not always (see `studio.timing`); an empty `sampler`
    stands for the base's own.

    Raises `SettingError` that lists every fault at once.
    """

    prompt: str
    steps: int
    guidance: float
    seed: int
    width: int
    height: int
    negative_prompt: str = ""
    mix: Mapping[str, float] = field(default_factory=dict)
    sampler: str = ""
    timing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = [
            *_text_faults("prompt", self.prompt),
            *_text_faults("negative prompt", self.negative_prompt),
            *_whole_faults("number of steps", self.steps, 1, MAX_STEPS),
            *_real_faults("guidance", self.guidance, 0.0, MAX_GUIDANCE),
            *_whole_faults("seed", self.seed, 0, MAX_SEED),
            *_whole_faults("width", self.width, 8, 8192),
            *_whole_faults("height", self.height, 8, 8192),
            *_mix_faults(self.mix),
            *_text_faults("sampler", self.sampler),
            *_timing_faults(self.timing, self.mix),
        ]
        if isinstance(self.prompt, str) and not self.prompt.strip():
            faults.insert(0, "The prompt is empty: describe what the picture should show.")
        if faults:
            raise SettingError(" ".join(faults))


def _text_faults(name: str, value: object) -> list[str]:
    if not isinstance(value, str):
        return [f"The {name} has to be text, not {_shown(value)}."]
    if len(value) > MAX_PROMPT:
        return [f"The {name} has {len(value)} characters; at most {MAX_PROMPT} are taken."]
    return []


def _whole_faults(name: str, value: object, low: int, high: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return []
    return [f"The {name} has to be a whole number from {low} to {high}, not {_shown(value)}."]


def _real_faults(name: str, value: object, low: float, high: float) -> list[str]:
    # NaN fails the comparison too.
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return []
    return [f"The {name} has to be a number from {low:g} to {high:g}, not {_shown(value)}."]


def _mix_faults(mix: object) -> list[str]:
    if not isinstance(mix, Mapping):
        return [f"Adapters have to be given as {{name: strength}}, not {_shown(mix)}."]
    faults = []
    for name, strength in mix.items():
        faults += _real_faults(f"strength of {_shown(name)}", strength, MIN_STRENGTH, MAX_STRENGTH)
    return faults


def _timing_faults(timing: object, mix: object) -> list[str]:
    if not isinstance(timing, Mapping):
        return [f"The timing has to be given as {{name: when}}, not {_shown(timing)}."]
    faults = []
    for name, when in timing.items():
        if when not in list(Timing):
            known = ", ".join(Timing)
            faults.append(f"{_shown(name)} can work {known}, not {_shown(when)}.")
        elif isinstance(mix, Mapping) and name not in mix:
            faults.append(f"There is a timing for {_shown(name)}, which is not among the adapters.")
    return faults


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
