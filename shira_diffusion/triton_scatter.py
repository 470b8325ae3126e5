"""The hot path on CUDA: one launch for the entries of all weights.

Every program works on one block of entries of one weight, whose address it finds in a table. Only
CUDA needs this file, and Triton, which comes with torch's CUDA wheels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from shira_diffusion.errors import EntriesChangedError
from shira_diffusion.places import Places, Step, WeightTable

BLOCK = 256
"""How many entries one program works on at most, one in each thread.

Neighbours are fetched at the same time then; more entries a thread are up to a tenth slower.
"""
WARPS = BLOCK // 32


def programs(counts: Sequence[int], device: torch.device) -> Tensor:
    """(programs, 3) int64 on `device`: the weight, its block's first entry and the one past it.

    Entries are numbered over all weights, of which there are `counts` each.
    """
    entries = torch.tensor(counts, dtype=torch.int64)
    ends = entries.cumsum(0)
    blocks = (entries + BLOCK - 1) // BLOCK
    weight = torch.arange(len(counts)).repeat_interleave(blocks)
    nth = torch.arange(weight.numel()) - (blocks.cumsum(0) - blocks)[weight]
    first = (ends - entries)[weight] + nth * BLOCK
    last = torch.minimum(first + BLOCK, ends[weight])
    return torch.stack([weight, first, last], dim=1).to(device)


def read(table: WeightTable, places: Places) -> Tensor:
    """As `scatter.read_many`."""
    held = torch.empty(places.indices.numel(), dtype=table.dtype, device=table.device)
    _launch(_read, table, places, held)
    return held


def write(table: WeightTable, places: Places, values: Tensor) -> None:
    """As `scatter.write_many`."""
    _launch(_write, table, places, values.contiguous())
    increment_version(table.weights)


def exchange(table: WeightTable, steps: Sequence[Step], meanwhile: Callable[[], None]) -> None:
    """As `scatter.exchange_many`: the host looks at the number of misses once, at the end."""
    # Rows that begin at 16 bytes spare Triton a second version of the kernel.
    width = -(-len(table.weights) // 4) * 4
    misses = torch.zeros(1 + len(steps), width, dtype=torch.int32, device=table.device)
    all_misses, *by_step = misses.unbind()
    done: list[tuple[Places, Tensor]] = []
    try:
        for step, missed in zip(steps, by_step, strict=True):
            held = torch.empty_like(step.expected)
            vectors = (held, step.expected, step.values, missed, all_misses)
            _launch(_exchange, table, step.places, *vectors)
            done.append((step.places, held))
        increment_version(table.weights)
        meanwhile()
        if all_misses[0].item():
            turn, weight = misses[1:].nonzero()[0].tolist()
            raise EntriesChangedError(weight, turn)
    except BaseException:
        for places, held in reversed(done):
            write(table, places, held)
        raise


def _launch(kernel: Any, table: WeightTable, places: Places, *vectors: Tensor) -> None:
    """Run `kernel` on every block; all `vectors` but the last two of an exchange are (n,).

    The addresses are those of when the table was made: callers ask `table.is_in_place()` before.
    """
    assert len(places.counts) == len(table.weights)
    assert vectors[0].dtype == table.dtype
    if places.programs.shape[0]:
        with torch.cuda.device_of(places.indices):
            grid = (places.programs.shape[0],)
            kernel[grid](
                places.programs,
                table.pointers,
                places.indices,
                *vectors,
                block=BLOCK,
                num_warps=WARPS,
            )


@triton.jit
def _block(programs, pointers, indices, vector, block: tl.constexpr):
    """This program's weight, its entries in the flat vectors, their mask, and their addresses."""
    row = programs + 3 * tl.program_id(0)
    weight = tl.load(row)
    entries = tl.load(row + 1) + tl.arange(0, block)
    inside = entries < tl.load(row + 2)
    address = tl.load(pointers + weight).to(tl.pointer_type(vector.dtype.element_ty))
    return weight, entries, inside, address + tl.load(indices + entries, mask=inside, other=0)


@triton.jit
def _read(programs, pointers, indices, held, block: tl.constexpr):
    _, entries, inside, live = _block(programs, pointers, indices, held, block)
    tl.store(held + entries, tl.load(live, mask=inside), mask=inside)


@triton.jit
def _write(programs, pointers, indices, values, block: tl.constexpr):
    _, entries, inside, live = _block(programs, pointers, indices, values, block)
    tl.store(live, tl.load(values + entries, mask=inside), mask=inside)


@triton.jit
def _exchange(
    programs, pointers, indices, held, expected, values, misses, all_misses, block: tl.constexpr
):
    weight, entries, inside, live = _block(programs, pointers, indices, held, block)
    new = tl.load(values + entries, mask=inside)
    wanted = tl.load(expected + entries, mask=inside, other=0.0)
    found = tl.load(live, mask=inside, other=0.0)
    tl.store(live, new, mask=inside)
    tl.store(held + entries, found, mask=inside)
    same = (found == wanted) | ((found != found) & (wanted != wanted))
    missed = tl.sum(tl.where(inside & (same == 0), 1, 0))
    tl.atomic_add(misses + weight, missed, mask=missed > 0)
    tl.atomic_add(all_misses, missed, mask=missed > 0)
