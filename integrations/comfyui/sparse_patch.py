"""A weight patch that holds a few entries, in ComfyUI's own patch mechanism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor


class SparsePatch(WeightAdapterBase):
    """strength * values at some entries of a weight; nothing of the weight's size is ever made.

    `weights` is (indices, values), both (nnz,). ComfyUI copies an adapter to another device as
    `type(adapter)(adapter.loaded_keys, moved weights)`, so there is nothing else in it.
    """

    name = "shira"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, Tensor]):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,  # noqa: ARG002
        strength: float,
        strength_model: float,  # noqa: ARG002
        offset: Any,  # noqa: ARG002
        function: Callable[[Tensor], Tensor],  # noqa: ARG002
        intermediate_dtype: torch.dtype = torch.float32,  # noqa: ARG002
        original_weight: Any = None,  # noqa: ARG002
    ) -> Tensor:
        """The weight with its entries changed, in place where its memory is in order.

        Each entry is computed in fp32 and rounded once, in whatever dtype ComfyUI patches: a model
        that is streamed in low-VRAM mode gets the same weights as one that is loaded. ComfyUI
        gives `offset` and `function` only to patches of a part of a weight, which ours are not.
        """
        indices, values = (one.to(weight.device) for one in self.weights)
        places = indices.long()
        flat = weight.contiguous().view(-1)
        changed = flat[places].float() + strength * values.float()
        flat.index_copy_(0, places, changed.to(flat.dtype))
        return flat.view(weight.shape)
