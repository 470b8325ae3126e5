"""Adapters in a live model: put in, mixed and taken out, with the base always bit-exact."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.components import Weights
from shira_diffusion.delta import VALUE_DTYPES, SparseDelta
from shira_diffusion.errors import MismatchError, SettingError, UnknownAdapterError, nearest
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.patch import Patch


class AdapterSwitcher:
    """The adapters of one model: a diffusers pipeline, a mapping of modules, or one module.

    Weights keep their tensors and addresses; only touched entries are rewritten. The base values
    of those are stored and put back, never recomputed. What fails changes nothing.

    Any thread may call any method. A model call that must see one mix throughout belongs inside
    `using`, which holds the switcher's re-entrant lock; enter and leave it in one thread.

    A module may be moved or cast while adapters are active: the next call follows it, provided
    that its weights still hold the mix. Weights that something else changed in the meantime
    (training, another program's fuse) cannot be restored and are refused with `MismatchError`.
    So are weights on `meta`, as sequential CPU offload leaves them.
    """

    def __init__(self, target: Any):
        self._weights = Weights(target)
        self._fingerprints = MappingProxyType(
            {component: fingerprint(module) for component, module in self._weights.modules.items()}
        )
        self._lock = threading.RLock()
        self._adapters: dict[str, Mapping[str, SparseDelta]] = {}
        self._active: dict[str, float] = {}
        self._patches: dict[str, Patch] = {}

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprint of every component of the base, see `shira_diffusion.fingerprint`."""
        return self._fingerprints

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loaded adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> Mapping[str, float]:
        """The mix that is in the model now, strengths of 0 left out."""
        return dict(self._active)

    def add(self, name: str, adapter: Adapter) -> None:
        """Load an adapter under `name`; the model does not change yet.

        Raises `SettingError` for a name in use and `MismatchError` for an adapter of another base,
        or with a weight that this model lacks or has in another shape.
        """
        with self._lock:
            if name in self._adapters:
                raise SettingError(f"an adapter {name!r} is already loaded; remove it first")
            self._require_same_base(name, adapter)
            self._adapters[name] = self._bound(name, adapter)

    def remove(self, name: str) -> None:
        """Forget an adapter, taking it out of the model first if it is active."""
        with self._lock:
            self._require_known(name)
            if name in self._active:
                self.set({one: strength for one, strength in self._active.items() if one != name})
            del self._adapters[name]

    def set(self, mix: Mapping[str, float]) -> None:
        """Make `mix` (name -> strength) the adapters in the model; 0 means not applied.

        The result depends on the mix alone, neither on the order of names nor on what was active
        before. Raises `UnknownAdapterError`, `SettingError` (a strength that is not finite) or
        `MismatchError`, and then the model is as it was.
        """
        with self._lock:
            strengths = {name: self._strength(name, mix[name]) for name in mix}
            self._exchange({name: one for name, one in strengths.items() if one != 0.0})

    def clear(self) -> None:
        """The base again, bit for bit."""
        self.set({})

    @contextmanager
    def using(self, mix: Mapping[str, float]) -> Iterator[None]:
        """Hold the model under `mix` for a block; no other thread can change it meanwhile.

        Blocks may nest. The mix of before comes back at the end, less what was removed inside.
        """
        with self._lock:
            before = [(name, self._adapters[name], one) for name, one in self._active.items()]
            self.set(mix)
            try:
                yield
            finally:
                kept = {name: one for name, was, one in before if self._adapters.get(name) is was}
                self.set(kept)

    def _require_known(self, name: str) -> None:
        if name not in self._adapters:
            raise UnknownAdapterError(
                f"no adapter {name!r} is loaded ({nearest(name, self._adapters)}); add it first"
            )

    def _require_same_base(self, name: str, adapter: Adapter) -> None:
        for component, mark in adapter.info.base_fingerprint.items():
            if self._fingerprints.get(component, mark) != mark:
                base = adapter.info.base_model or "another base"
                raise MismatchError(
                    f"the adapter {name!r} was made for {base}, whose {component or 'module'!r} is "
                    "not this model's; to try it here all the same, add "
                    "adapter.for_base(switcher.fingerprints)"
                )

    def _bound(self, name: str, adapter: Adapter) -> dict[str, SparseDelta]:
        """The adapter's changes by the model's own slots, on the devices of the weights."""
        bound: dict[str, SparseDelta] = {}
        for weight_name, delta in adapter.deltas.items():
            slot = self._weights.slot(weight_name)
            if slot in bound:
                raise MismatchError(
                    f"the adapter {name!r} changes the weight {slot!r} under two names, as it is "
                    "shared in this model"
                )
            weight = self._live(slot, delta.shape)
            bound[slot] = delta.to(weight.device)
        return bound

    def _live(self, slot: str, shape: tuple[int, ...]) -> Tensor:
        weight = self._weights.live(slot)
        if tuple(weight.shape) != shape or weight.dtype not in VALUE_DTYPES:
            raise MismatchError(
                f"the weight {slot!r} is {weight.dtype} {tuple(weight.shape)} in this model, but "
                f"adapters change it as fp16, bf16 or fp32 {shape}"
            )
        return weight

    def _strength(self, name: str, value: float) -> float:
        self._require_known(name)
        try:
            strength = float(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise SettingError(
                f"the strength of {name!r} must be a number, got {value!r}"
            ) from error
        if not math.isfinite(strength):
            raise SettingError(f"the strength of {name!r} must be finite, got {value!r}")
        return strength

    def _exchange(self, mix: dict[str, float]) -> None:
        """Put the base back and `mix` in, or leave everything as it was."""
        terms: dict[str, list[tuple[SparseDelta, float]]] = {}
        for name in sorted(mix):
            for slot, delta in self._adapters[name].items():
                terms.setdefault(slot, []).append((delta, mix[name]))
        live = {slot: self._live(slot, changes[0][0].shape) for slot, changes in terms.items()}
        old: dict[str, Patch] = {}
        for slot, patch in self._patches.items():
            live[slot] = self._live(slot, patch.shape)
            old[slot] = self._followed(slot, patch, live[slot])
        new: dict[str, Patch] = {}
        try:
            for slot, patch in old.items():
                patch.restore(live[slot])
            for slot, changes in terms.items():
                new[slot] = Patch.plan(live[slot], changes)
                new[slot].apply(live[slot])
        except BaseException:
            for slot, patch in new.items():
                patch.restore(live[slot])
            for slot, patch in old.items():
                patch.apply(live[slot])
            raise
        self._patches, self._active = new, mix

    def _followed(self, slot: str, patch: Patch, weight: Tensor) -> Patch:
        try:
            return patch.follow(weight)
        except MismatchError as error:
            raise MismatchError(
                f"the weight {slot!r} cannot be given back its base: {error}; load the base anew "
                "and make a new AdapterSwitcher"
            ) from error
