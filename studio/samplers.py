"""The samplers to choose from, under the names that people know from AUTOMATIC1111's web UI."""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from shira_diffusion.errors import SettingError, nearest

_KINDS: Mapping[str, tuple[type[SchedulerMixin], Mapping[str, Any]]] = {
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "DPM++ 2M Karras": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "DPM++ 2M SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": (UniPCMultistepScheduler, {}),
}


class Samplers:
    """What a base can be sampled with; the first name is its own way."""

    def __init__(self, own: SchedulerMixin) -> None:
        self._own = own
        names = {kind: name for name, (kind, extra) in _KINDS.items() if not extra}
        own_name = names.get(type(own)) or type(own).__name__.removesuffix("Scheduler")
        others = [name for name in _KINDS if name != own_name and not self._is_spoilt(name)]
        self.names = (own_name, *others)

    def make(self, name: str) -> SchedulerMixin:
        """A fresh scheduler of this name, the base's own for none; `SettingError` if unknown."""
        if name in ("", self.names[0]):
            return type(self._own).from_config(self._own.config)
        if name not in self.names:
            known = nearest(name, self.names, most=len(self.names))
            raise SettingError(f"There is no sampler {name!r} for this base; {known}.")
        kind, extra = _KINDS[name]
        return kind.from_config(self._own.config, **extra)

    def _is_spoilt(self, name: str) -> bool:
        # With zero terminal SNR the largest sigma is in the thousands: spaced as Karras does,
        # nearly all steps would be spent in pure noise.
        karras = bool(_KINDS[name][1].get("use_karras_sigmas"))
        return karras and bool(self._own.config.get("rescale_betas_zero_snr"))
