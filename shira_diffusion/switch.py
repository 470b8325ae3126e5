"""Adapters in a live model: put in, mixed and taken out, with the base always bit-exact."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from shira_diffusion.adapter import Adapter, Delta
from shira_diffusion.components import Weights
from shira_diffusion.errors import (
    EntriesChangedError,
    MismatchError,
    SettingError,
    UnknownAdapterError,
    nearest,
)
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.packed import Packed
from shira_diffusion.places import Step
from shira_diffusion.plan import Plan
from shira_diffusion.residency import Residency
from shira_diffusion.sites import Group, Sites, followed, require_fit
from shira_diffusion.transaction import all_or_none, naming, turns

# Of how many sets of adapters the joined entries and their base values are kept.
_PLANS = 8

Steps = Mapping[Group, Step]


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The shapes of the weights that an adapter changes, by slot."""

    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class _State:
    """A mix and what it did to the weights: from `expected`, their base, to `values`."""

    mix: Mapping[str, float] = field(default_factory=dict)
    steps: Steps = field(default_factory=dict)


class _RelinkedError(Exception):
    """The model has other weights now than those that were written to."""


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

    The entries of every mix are looked at whenever it is left, so this holds on a GPU too; it is
    what the host waits for, once in a switch. `residency` says how much memory loaded adapters
    may take.
    """

    def __init__(self, target: Any, residency: Residency | None = None):
        self._weights = Weights(target)
        self._fingerprints = MappingProxyType(
            {component: fingerprint(module) for component, module in self._weights.modules.items()}
        )
        self._residency = residency if residency is not None else Residency()
        self._lock = threading.RLock()
        self._adapters: dict[str, _Loaded] = {}
        self._home = torch.device("cpu")
        self._state = _State()
        self._sites: Sites | None = None
        self._plans: OrderedDict[tuple[str, ...], Mapping[Group, Plan]] = OrderedDict()

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
        return dict(self._state.mix)

    def add(self, name: str, adapter: Adapter) -> None:
        """Load an adapter under `name`; the model does not change yet.

        Raises `SettingError` for a name in use and `MismatchError` for an adapter of another base,
        or with a weight that this model lacks or has in another shape.
        """
        with self._lock:
            if name in self._adapters:
                raise SettingError(f"an adapter {name!r} is already loaded; remove it first")
            self._require_same_base(name, adapter)
            deltas = self._by_slot(name, adapter)
            self._residency.put(name, Packed.of(deltas))
            self._adapters[name] = _Loaded({slot: one.shape for slot, one in deltas.items()})

    def remove(self, name: str) -> None:
        """Forget an adapter, taking it out of the model first if it is active."""
        with self._lock:
            self._require_known(name)
            active = self.active
            if name in active:
                self.set({one: strength for one, strength in active.items() if one != name})
            del self._adapters[name]
            self._residency.drop(name)
            self._forget_plans(lambda names: name in names)

    def prefetch(self, *names: str) -> None:
        """Start bringing adapters to the model's device, for a `set` that comes soon.

        Does not wait for whoever holds the switcher.
        """
        for name in names:
            self._require_known(name)
        self._residency.prefetch(names, self._home)

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
            before = [(name, self._adapters[name], one) for name, one in self.active.items()]
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

    def _by_slot(self, name: str, adapter: Adapter) -> dict[str, Delta]:
        """The adapter's changes by the model's own slots."""
        bound: dict[str, Delta] = {}
        for weight_name, delta in adapter.deltas.items():
            slot = self._weights.slot(weight_name)
            if slot in bound:
                raise MismatchError(
                    f"the adapter {name!r} changes the weight {slot!r} under two names, as it is "
                    "shared in this model"
                )
            weight = self._weights.live(slot)
            require_fit(slot, weight, delta.shape)
            self._home = weight.device
            bound[slot] = delta
        return bound

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
        if not mix and not self._state.mix:
            return
        names = tuple(sorted(mix))
        sites, plans = self._sites, self._plans.get(names)
        if sites is not None and plans is not None and sites.is_in_place():
            try:
                self._commit(sites, mix, plans, self._switched(sites, plans, mix))
            except EntriesChangedError:
                # The base may have been changed while nothing was in it: read it again.
                del self._plans[names]
            except _RelinkedError:
                self._sites = None
            else:
                return
        sites, old = self._followed(mix)
        self._commit(sites, mix, *self._planned(sites, old, mix))

    def _followed(self, mix: Mapping[str, float]) -> tuple[Sites, Steps]:
        """The weights of the old and the new mix as they lie now, and the old mix in them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in (*self._state.mix, *mix):
            shapes |= self._adapters[name].shapes
        known = self._sites
        if known is not None and known.is_current():
            if shapes.keys() <= known.shapes.keys():
                return known, self._state.steps
            shapes |= known.shapes
        sites = Sites(self._weights, shapes)
        return sites, followed(self._state.steps, sites.groups)

    def _switched(
        self, sites: Sites, plans: Mapping[Group, Plan], mix: Mapping[str, float]
    ) -> Steps:
        """From the old steps to the planned ones, with one exchange for each group.

        Raises `_RelinkedError` when the model has other weights than `sites` by now. To look costs
        the host about as much as the switch costs the GPU, so it looks while the GPU works.
        """

        def require_links() -> None:
            if not sites.is_linked():
                raise _RelinkedError

        new = {group: plan.step(mix) for group, plan in plans.items()}
        with all_or_none(require_links) as take:
            for group in sites.groups:
                take(group.table, turns(self._state.steps.get(group), new.get(group)))
        return new

    def _planned(
        self, sites: Sites, old: Steps, mix: Mapping[str, float]
    ) -> tuple[Mapping[Group, Plan], Steps]:
        """From the old steps to those of a new plan, for which the base is read in between."""
        home = sites.groups[0].table.device if sites.groups else self._home
        self._residency.prefetch(mix, home)
        with all_or_none() as take:
            for group, step in old.items():
                with naming(group):
                    take(group.table, [step.reversed()])
            packed = self._residency.fetch(mix, home)
            plans = {}
            for group in sites.groups:
                parts = {
                    name: part.over(group.slots, group.table.device)
                    for name, part in packed.items()
                }
                touching = {name: part for name, part in parts.items() if not part.is_empty}
                if touching:
                    plans[group] = Plan(group.table, touching)
            new = {group: plan.step(mix) for group, plan in plans.items()}
            for group, step in new.items():
                with naming(group):
                    take(group.table, [step])
        return plans, new

    def _commit(
        self, sites: Sites, mix: Mapping[str, float], plans: Mapping[Group, Plan], steps: Steps
    ) -> None:
        self._state = _State(mix, steps)
        names = tuple(sorted(mix))
        if sites is not self._sites:
            self._sites = sites
            self._plans.clear()
        self._plans[names] = plans
        self._plans.move_to_end(names)
        if len(self._plans) > _PLANS:
            self._plans.popitem(last=False)
        if sites.groups:
            self._home = sites.groups[0].table.device
        # A plan holds on to the memory of its adapters, which the budget may want back.
        self._forget_plans(
            lambda known: (
                known != names
                and (
                    any(plan.is_heavy for plan in self._plans[known].values())
                    or not all(self._residency.holds(name, self._home) for name in known)
                )
            )
        )

    def _forget_plans(self, unwanted: Callable[[tuple[str, ...]], bool]) -> None:
        for names in [names for names in self._plans if unwanted(names)]:
            del self._plans[names]
