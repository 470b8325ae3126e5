"""The hot path: read and overwrite chosen entries of live weights, bit for bit.

One launch for all weights on CUDA; elsewhere weight after weight, so that what was read is still
in the cache when it is written, and in several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from shira_diffusion import whole
from shira_diffusion.errors import EntriesChangedError
from shira_diffusion.places import Places, Step, WeightTable

_ENTRIES_WORTH_A_THREAD = 100_000
_BITS = {2: torch.int16, 4: torch.int32}


def read(weight: Tensor, indices: Tensor) -> Tensor:
    """A copy of `weight.flatten()[indices]`; (k,) in the weight's dtype.

    A weight whose entries do not lie in one piece (channels_last, a transposed view) is read by
    its logical order too, without a copy of the whole of it.
    """
    weight = weight.detach()
    if weight.is_contiguous():
        return weight.view(-1).index_select(0, indices)
    return weight.take(indices.long())


def write(weight: Tensor, indices: Tensor, values: Tensor) -> None:
    """Set `weight.flatten()[indices] = values` in place, whatever the weight's strides.

    `values` (k,) have the weight's dtype and device. `index_copy_` is the fastest op on CPU in
    every dtype (in bf16 14 times faster than `scatter_`); it needs a flat view, which `put_`
    does without.
    """
    with torch.no_grad():
        if weight.is_contiguous():
            weight.view(-1).index_copy_(0, indices.long(), values)
        else:
            weight.put_(indices.long(), values)


def read_many(table: WeightTable, places: Places) -> Tensor:
    """A copy of the entries at `places`, (n,) in the table's dtype."""
    if _has_kernels(table):
        from shira_diffusion import triton_scatter

        return triton_scatter.read(table, places)
    held = torch.empty(places.indices.numel(), dtype=table.dtype, device=table.device)
    parts = places.split(held)

    def work(number: int) -> None:
        parts[number].copy_(read(table.weights[number], places.parts[number]))

    _for_each_weight(places.counts, work)
    return held


def write_many(table: WeightTable, places: Places, values: Tensor) -> None:
    """Set the entries at `places` to `values` (n,), which have the table's dtype and device."""
    if _has_kernels(table):
        from shira_diffusion import triton_scatter

        triton_scatter.write(table, places, values)
        return
    parts = places.split(values)

    def work(number: int) -> None:
        write(table.weights[number], places.parts[number], parts[number])

    _for_each_weight(places.counts, work)


def nothing() -> None:
    """There is nothing else to do."""


def exchange_many(
    table: WeightTable, steps: Sequence[Step], meanwhile: Callable[[], None] = nothing
) -> None:
    """Take all `steps`, each after the one before it, or none of them.

    Raises `EntriesChangedError` where an entry does not hold what its step expects, NaN being
    equal to NaN; whatever is raised, by `meanwhile` too, every entry then is as it was, bit for
    bit. On CUDA the host waits once, for this verdict, and calls `meanwhile` before it waits.
    """
    if any(step.whole is not None for step in steps):
        meanwhile()
        _exchange_one_by_one(table, steps)
        return
    _exchange_entries(table, steps, meanwhile)


def _exchange_one_by_one(table: WeightTable, steps: Sequence[Step]) -> None:
    """Steps of which some change whole weights, which a later step may change in places."""
    done: list[Callable[[], None]] = []
    try:
        for number, step in enumerate(steps):
            back = step.reversed()
            try:
                _exchange_entries(table, [step])
                done.append(partial(_exchange_entries, table, [back]))
                if step.whole is not None and back.whole is not None:
                    whole.exchange(table.weights, step.whole)
                    done.append(partial(whole.exchange, table.weights, back.whole))
            except EntriesChangedError as error:
                raise EntriesChangedError(error.weight, number) from error
    except BaseException:
        for undo in reversed(done):
            undo()
        raise


def _exchange_entries(
    table: WeightTable, steps: Sequence[Step], meanwhile: Callable[[], None] = nothing
) -> None:
    if _has_kernels(table):
        from shira_diffusion import triton_scatter

        triton_scatter.exchange(table, steps, meanwhile)
        return
    meanwhile()
    _exchange_by_weight(table, steps)


def _exchange_by_weight(table: WeightTable, steps: Sequence[Step]) -> None:
    turns = [
        (step.places.parts, step.places.split(step.expected), step.places.split(step.values))
        for step in steps
    ]
    done: list[tuple[Tensor, Tensor, Tensor]] = []

    def work(number: int) -> None:
        weight = table.weights[number]
        for turn, (places, expected, values) in enumerate(turns):
            if not places[number].numel():
                continue
            indices = places[number].long()
            held = _as_expected(read(weight, indices), expected[number])
            if held is None:
                raise EntriesChangedError(number, turn)
            done.append((weight, places[number], held))
            write(weight, indices, values[number])

    counts = [step.places.counts for step in steps]
    try:
        _for_each_weight([sum(each) for each in zip(*counts, strict=True)], work)
    except BaseException:
        for weight, indices, held in reversed(done):
            write(weight, indices, held)
        raise


def _for_each_weight(counts: Sequence[int], work: Callable[[int], None]) -> None:
    """Call `work` with the number of each weight that has entries, in torch's number of threads.

    Its ops run in one thread each and wait for memory most of the time: two threads take 0.54 of
    the time of one. Few entries are not worth a thread. Returns or raises when all have ended.
    """
    numbers = [number for number, count in enumerate(counts) if count]
    shares = min(torch.get_num_threads(), 1 + sum(counts) // _ENTRIES_WORTH_A_THREAD)
    # A thread of its own knows nothing of the mode that its caller is in.
    inference = torch.is_inference_mode_enabled()

    def run(share: int) -> None:
        with torch.inference_mode(inference):
            for number in numbers[share::shares]:
                work(number)

    if shares == 1:
        run(0)
        return
    with ThreadPoolExecutor(shares - 1) as pool:
        others = [pool.submit(run, share) for share in range(1, shares)]
        run(0)
    for other in others:
        other.result()


def _as_expected(held: Tensor, expected: Tensor) -> Tensor | None:
    """`held` where it equals `expected`, NaN being equal to NaN, else None.

    Where the two are equal bit for bit, `expected` stands for both, so that nothing is kept twice.
    """
    bits = _BITS[held.element_size()]
    if torch.equal(held.view(bits), expected.view(bits)):
        return expected
    same = (held == expected) | (held.isnan() & expected.isnan())
    return held if bool(same.all()) else None


def _has_kernels(table: WeightTable) -> bool:
    return table.device.type == "cuda" and table.is_flat
