"""What methods have to say at the end, and the one file that it is written to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from shira_diffusion import Adapter, AdapterInfo, SparseDelta
from shira_diffusion.components import canonical_name
from training.methods.lora_file import write_lora


@dataclass(frozen=True)
class LowRank:
    """Factors and magnitudes under PEFT's names, and PEFT's settings of them."""

    tensors: Mapping[str, Tensor]
    settings: LoraConfig


Content = Mapping[str, SparseDelta] | LowRank
"""The changes of a module's weights, by name."""


def write(contents: Mapping[str, Content], path: Path, info: AdapterInfo) -> None:
    """Write the contents of modules, by where these are in a pipeline, all of one kind, in fp16."""
    low = {place: content for place, content in contents.items() if isinstance(content, LowRank)}
    if low:
        assert len(low) == len(contents), "low-rank and sparse changes have no file in common"
        tensors = {
            canonical_name(f"{place}.{name}"): tensor
            for place, content in low.items()
            for name, tensor in content.tensors.items()
        }
        settings = {place.partition(".")[0]: content.settings for place, content in low.items()}
        write_lora(path, tensors, settings, info)
        return
    deltas = {
        canonical_name(f"{place}.{name}"): delta.to("cpu", torch.float16)
        for place, content in contents.items()
        if not isinstance(content, LowRank)
        for name, delta in content.items()
    }
    Adapter(deltas, info).save(path)
