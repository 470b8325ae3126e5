"""Where loaded adapters wait for their turn: on the device, in the host's memory, or on disk."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.packed import Packed


@dataclass(frozen=True, eq=False)
class _Copy:
    """An adapter on a device, and what the device's stream has to wait for before it is there."""

    packed: Packed
    arrival: torch.cuda.Event | None


class Residency:
    """The adapters of one switcher, in as little memory as they are allowed.

    Each lies in the host's memory or, once those there hold more than `host_bytes`, in a file
    under `folder` (a temporary one by default); the least recently used go first. Those used on
    an accelerator also have a copy there, up to `device_bytes`. What a mix needs may exceed either
    budget while it is set. Budgets are in bytes of indices and values, None sets no limit; the
    switcher's own vectors for the mixes it knows, about as much again, are not counted.

    Any thread may call any method.
    """

    def __init__(
        self,
        *,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        folder: Path | None = None,
    ):
        for name, limit in (("device_bytes", device_bytes), ("host_bytes", host_bytes)):
            if limit is not None and limit < 0:
                raise SettingError(f"{name} must be 0 or more, or None for no limit, got {limit}")
        self._device_bytes, self._host_bytes = device_bytes, host_bytes
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.RLock()
        self._host: OrderedDict[str, Packed] = OrderedDict()
        self._disk: dict[str, _Spilled] = {}
        self._device: OrderedDict[str, _Copy] = OrderedDict()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def put(self, name: str, packed: Packed) -> None:
        """Take in a new adapter, which lies on the CPU."""
        with self._lock:
            self._host[name] = packed
            try:
                self._keep_host_budget(keep={name})
            except ShiraError:
                del self._host[name]
                raise

    def drop(self, name: str) -> None:
        """Forget an adapter everywhere."""
        with self._lock:
            self._device.pop(name, None)
            self._host.pop(name, None)
            spilled = self._disk.pop(name, None)
            if spilled is not None:
                spilled.file.unlink(missing_ok=True)

    def where(self, name: str) -> str:
        """The fastest memory that holds it: "device", "host" or "disk"."""
        with self._lock:
            if name in self._device:
                return "device"
            return "host" if name in self._host else "disk"

    def prefetch(self, names: Iterable[str], device: torch.device) -> None:
        """Start bringing adapters to `device`, so that `fetch` finds them there or on their way.

        To a GPU they are copied from page-locked memory in a stream of their own, beside whatever
        it does meanwhile.
        """
        with self._lock:
            names = list(names)
            for name in names:
                if device.type == "cpu":
                    self._on_host(name, keep=names)
                elif not self._is_on(name, device):
                    self._device[name] = self._sent(self._on_host(name, keep=names), name, device)
                    self._keep_device_budget(keep=names)

    def fetch(self, names: Collection[str], device: torch.device) -> Mapping[str, Packed]:
        """The adapters on `device`, ready for its current stream."""
        with self._lock:
            self.prefetch(names, device)
            if device.type == "cpu":
                return {name: self._host[name] for name in names}
            return {name: self._arrived(name, device) for name in names}

    def holds(self, name: str, device: torch.device) -> bool:
        """Whether `fetch` needs no copy for this adapter."""
        with self._lock:
            return name in self._host if device.type == "cpu" else self._is_on(name, device)

    def _is_on(self, name: str, device: torch.device) -> bool:
        return name in self._device and self._device[name].packed.values.device == device

    def _arrived(self, name: str, device: torch.device) -> Packed:
        self._device.move_to_end(name)
        copy = self._device[name]
        if copy.arrival is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(copy.arrival)
            # The memory belongs to the stream that copied; it must not be reused under this one.
            for tensor in copy.packed.tensors.values():
                tensor.record_stream(stream)
        return copy.packed

    def _sent(self, packed: Packed, name: str, device: torch.device) -> _Copy:
        if device.type != "cuda":
            return _Copy(packed.to(device), None)
        if not packed.values.is_pinned():
            packed = packed.pinned()
            if name in self._host:
                self._host[name] = packed
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        with torch.cuda.stream(stream):
            return _Copy(packed.to(device, non_blocking=True), stream.record_event())

    def _on_host(self, name: str, keep: Collection[str]) -> Packed:
        """The adapter in the host's memory, read back from disk if need be."""
        if name not in self._host:
            self._host[name] = self._disk[name].read(name)
            self._keep_host_budget(keep)
        self._host.move_to_end(name)
        return self._host[name]

    def _keep_device_budget(self, keep: Collection[str]) -> None:
        sizes = {name: copy.packed.nbytes for name, copy in self._device.items()}
        for name in _surplus(sizes, self._device_bytes, keep):
            del self._device[name]

    def _keep_host_budget(self, keep: Collection[str]) -> None:
        sizes = {name: packed.nbytes for name, packed in self._host.items()}
        for name in _surplus(sizes, self._host_bytes, keep):
            if name not in self._disk:
                self._disk[name] = self._put_aside(name)
            del self._host[name]

    def _put_aside(self, name: str) -> _Spilled:
        try:
            return _Spilled.write(self._host[name], self._spill_folder())
        except (OSError, SafetensorError) as error:
            raise ShiraError(
                f"the adapter {name!r} cannot be put aside on disk ({error}); free some space, or "
                "give Residency a larger host_bytes or another folder"
            ) from error

    def _spill_folder(self) -> Path:
        if self._temporary is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="shira-", dir=self._folder)
        return Path(self._temporary.name)


@dataclass(frozen=True, eq=False)
class _Spilled:
    """An adapter in a file; `hollow` is the adapter without its tensors."""

    file: Path
    hollow: Packed

    @classmethod
    def write(cls, packed: Packed, folder: Path) -> _Spilled:
        file = folder / f"{secrets.token_hex(8)}.safetensors"
        safetensors.torch.save_file(packed.tensors, file)
        return cls(file, packed.filled(dict.fromkeys(packed.tensors, torch.empty(0))))

    def read(self, name: str) -> Packed:
        try:
            return self.hollow.filled(safetensors.torch.load_file(self.file))
        except (OSError, SafetensorError, KeyError) as error:
            raise ShiraError(
                f"the adapter {name!r} was put aside in {self.file}, which cannot be read any more "
                f"({error}); remove the adapter and add it again"
            ) from error


def _surplus(sizes: Mapping[str, int], limit: int | None, keep: Collection[str]) -> list[str]:
    """Which to let go, the first ones first, until the rest is within `limit`."""
    excess = 0 if limit is None else sum(sizes.values()) - limit
    surplus = []
    for name, size in sizes.items():
        if excess <= 0:
            break
        if name not in keep:
            surplus.append(name)
            excess -= size
    return surplus
