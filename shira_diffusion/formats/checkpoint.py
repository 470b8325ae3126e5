"""Whole checkpoints, read weight by weight under adapters' names, whatever names they use.

A diffusers folder, SDXL's single file, or the weights of one component in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shira_diffusion.components import canonical_name
from shira_diffusion.errors import FormatError, MismatchError, nearest
from shira_diffusion.fingerprint import fingerprint_of
from shira_diffusion.formats import container, names, sgm
from shira_diffusion.formats.sgm import Part

INDEX = "model_index.json"


@dataclass(frozen=True)
class Stored:
    """One weight's place: the file, relative to the checkpoint, and the part of a tensor in it."""

    file: Path
    part: Part


class Checkpoint:
    """The weights of a checkpoint that adapters may change; each is read when it is asked for.

    Raises `FormatError` for a path that is no checkpoint and for pickle files.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.root = self.path if self.path.is_dir() else self.path.parent
        self.files = tuple(file.relative_to(self.root) for file in _files(self.path))
        self._open = {file: _opened(self.root / file) for file in self.files}
        self.places: Mapping[str, Stored] = self._found()
        if not self.places:
            raise FormatError(
                f"{self.path}: it holds no weights of SDXL's UNet or text encoders; give a "
                "diffusers folder or an SDXL checkpoint as .safetensors"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight `name`, from the header alone."""
        stored = self._stored(name)
        sizes = list(self._open[stored.file].get_slice(stored.part.key).get_shape())
        if stored.part.third is not None:
            sizes[0] //= 3
        return tuple(reversed(sizes)) if stored.part.transposed else tuple(sizes)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of all weights, by name."""
        return {name: self.shape(name) for name in self.places}

    def read(self, name: str) -> Tensor:
        """The weight `name`, in the dtype that it is stored in."""
        return self._stored(name).part.of(self.read_stored(name))

    def read_stored(self, name: str) -> Tensor:
        """The tensor that the weight `name` lies in, all of it, as it is stored."""
        stored = self._stored(name)
        try:
            tensor: Tensor = self._open[stored.file].get_tensor(stored.part.key)
            return tensor
        except SafetensorError as error:
            raise FormatError(f"{self.path}: {name!r} cannot be read ({error})") from error

    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprint of every component, as `AdapterSwitcher.fingerprints` has them.

        A part of a component has another fingerprint than the whole.
        """
        members: dict[str, list[str]] = {}
        for name in self.places:
            members.setdefault(name.partition(".")[0], []).append(name)
        return {component: self._fingerprint(own) for component, own in members.items()}

    def _fingerprint(self, own: Sequence[str]) -> str:
        full = {name.partition(".")[2]: name for name in own}
        return fingerprint_of(full, lambda path: self.read(full[path]))

    def _stored(self, name: str) -> Stored:
        stored = self.places.get(canonical_name(name))
        if stored is None:
            raise MismatchError(
                f"{self.path} has no weight {name!r} ({nearest(name, self.places)}); the adapter "
                "was made for another architecture"
            )
        return stored

    def _members(self, file: Path, key: str) -> Mapping[str, Part]:
        try:
            return _weights(file, key)
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}; give a checkpoint of SDXL") from error

    def _found(self) -> dict[str, Stored]:
        places: dict[str, Stored] = {}
        for file, handle in self._open.items():
            for key in handle.keys():  # noqa: SIM118
                for name, part in self._members(file, key).items():
                    if not part.fits(handle.get_slice(key).get_shape()):
                        raise FormatError(f"{self.path}: {key!r} is not of the shape of SDXL's")
                    if name in places:
                        raise FormatError(
                            f"{self.path}: {file} holds the weight {name!r} a second time; keep "
                            "one file of each component"
                        )
                    places[name] = Stored(file, part)
        return dict(sorted(places.items()))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    folders = [path / component for component in names.COMPONENTS]
    if not any(folder.is_dir() for folder in folders):
        folders = [path]
    files: list[Path] = []
    for folder in folders:
        found = sorted(folder.glob("*.safetensors"))
        # Where both are there, the plain files are the ones of full precision.
        files += [file for file in found if ".fp16." not in file.name] or found
    if not files:
        raise FormatError(f"{path}: there are no .safetensors files in this folder; check the path")
    return files


def _opened(file: Path) -> Any:
    container.read_header(file)
    return safe_open(file, framework="pt")


def _weights(file: Path, key: str) -> Mapping[str, Part]:
    component = file.parts[0]
    if len(file.parts) > 1 and component in names.COMPONENTS:
        if key.endswith("position_ids"):
            return {}
        return {canonical_name(f"{component}.{key}"): Part(key)}
    if key.startswith((sgm.UNET, sgm.CLIP, sgm.OPEN_CLIP)):
        found = sgm.from_checkpoint(key)
        return {canonical_name(name): part for name, part in found.items()}
    if key.startswith(names.UNET_PARTS):
        return {f"unet.{key}": Part(key)}
    return {}
