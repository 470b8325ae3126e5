"""The judge: which concept a picture shows and in which style, learned from real artwork.

There are two. `dev` is for choosing recipes and settings, `report`, which ships, for the figures
that are published: another architecture and seed, so that nobody tunes to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ConvNextV2Config, ConvNextV2Model, ResNetConfig, ResNetModel

from emoji_xl.data import shrunk
from emoji_xl.style_reading import StyleReading

JUDGES = Path("models/emoji-judge")
FULL_WIDTHS = (48, 96, 192, 320)
TOY_WIDTHS = (8, 8, 8, 8)
SMALLER = 0.85
"""To which share of its size a picture is shrunk for a second look."""
SCALE = ".row_scale"
"""Ending of the names of tensors that hold what a row's int8 values are multiplied by."""


@dataclass(frozen=True)
class Labels:
    """What a judge tells apart, in the order of its outputs."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What a judge sees in N pictures: probabilities (N, concepts) and (N, styles)."""

    labels: Labels
    concept: Tensor
    style: Tensor

    def concept_is(self, expected: Sequence[str]) -> Tensor:
        """Whether the likeliest concept of each picture is the expected one: bool (N,)."""
        return _hits(self.concept, self.labels.concepts, expected)

    def style_is(self, expected: Sequence[str]) -> Tensor:
        """Whether the likeliest style of each picture is the expected one: bool (N,)."""
        return _hits(self.style, self.labels.styles, expected)


class Judge(nn.Module):
    """A convolutional network names the concept, colours and shading tell the style."""

    def __init__(self, name: str, labels: Labels, widths: Sequence[int]) -> None:
        super().__init__()
        build, bins = KINDS[name]
        self.name, self.labels, self.widths = name, labels, tuple(widths)
        self.backbone = build(list(widths))
        self.concept_head = nn.Linear(widths[-1], len(labels.concepts))
        self.style = StyleReading(bins, len(labels.styles))
        self.log_temperature: Tensor
        self.register_buffer("log_temperature", torch.zeros(2))

    @classmethod
    def untrained(cls, name: str, labels: Labels, *, toy: bool = False) -> "Judge":
        """Build the judge `name`, `dev` or `report`, from its own seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(list(KINDS).index(name))
            return cls(name, labels, TOY_WIDTHS if toy else FULL_WIDTHS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, concepts) of images (N, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.concept_head(self.backbone(images).pooler_output.flatten(1))
        return logits

    @torch.no_grad()
    def look(self, images: Tensor, *, batch: int = 64) -> Verdict:
        """Judge images (N, 3, H, W) in [-1, 1], on the judge's device; probabilities calibrated.

        For its concept a picture is seen as it is, mirrored, smaller, and mirrored and smaller.
        """
        device = self.log_temperature.device
        concepts, styles = [], []
        for part in images.split(batch):
            seen = part.to(device)
            mirrored = seen.flip(3)
            views = (seen, mirrored, shrunk(seen, SMALLER), shrunk(mirrored, SMALLER))
            concepts.append(torch.stack([self(view).log_softmax(1) for view in views]).mean(0))
            styles.append(self.style(seen))
        scale = self.log_temperature.exp()
        return Verdict(
            self.labels,
            (torch.cat(concepts) / scale[0]).softmax(1).cpu(),
            (torch.cat(styles) / scale[1]).softmax(1).cpu(),
        )

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`: matrices as int8 rows, the rest in fp16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "name": self.name,
            "widths": self.widths,
            "concepts": self.labels.concepts,
            "styles": self.labels.styles,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(_packed(self.state_dict()), folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """Read what `save` wrote, in fp32 on the CPU."""
        config = json.loads((folder / "config.json").read_text())
        labels = Labels(tuple(config["concepts"]), tuple(config["styles"]))
        judge = cls(config["name"], labels, config["widths"])
        judge.load_state_dict(_unpacked(load_file(folder / "model.safetensors")))
        return judge.eval()


def resnet(widths: list[int]) -> nn.Module:
    """Build a ResNet of basic blocks (https://arxiv.org/abs/1512.03385)."""
    return ResNetModel(
        ResNetConfig(
            embedding_size=widths[0], hidden_sizes=widths, depths=[2, 2, 2, 2], layer_type="basic"
        )
    )


def convnext(widths: list[int]) -> nn.Module:
    """Build a ConvNeXt V2 (https://arxiv.org/abs/2301.00808)."""
    return ConvNextV2Model(
        ConvNextV2Config(hidden_sizes=widths, depths=[2, 2, 6, 2], drop_path_rate=0.1)
    )


KINDS: dict[str, tuple[Callable[[list[int]], nn.Module], int]] = {
    "dev": (resnet, 16),
    "report": (convnext, 20),
}
"""Each judge's network and how many bins a colour channel has in its style reading."""


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Stack equally sized RGB pictures as (N, 3, H, W) in [-1, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        if tensor.ndim > 1:
            rows = tensor.flatten(1)
            scale = (rows.abs().amax(dim=1) / 127).clamp(min=1e-8)
            packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
            packed[name + SCALE] = scale
        else:
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
    return packed


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name in plain:
        if name + SCALE in tensors:
            rows = plain[name].flatten(1).float() * tensors[name + SCALE][:, None]
            plain[name] = rows.view(plain[name].shape)
    return plain


def _hits(probabilities: Tensor, labels: Sequence[str], expected: Sequence[str]) -> Tensor:
    wanted = torch.tensor([labels.index(label) for label in expected])
    return probabilities.argmax(dim=1) == wanted
