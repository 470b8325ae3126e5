"""SparseDelta: what it holds, what it refuses, and its way to and from dense tensors."""

import pytest
import torch

from shira_diffusion.delta import SparseDelta, index_dtype
from shira_diffusion.errors import DeltaError


def delta(indices: list[int], values: list[float], shape: tuple[int, ...] = (2, 3)) -> SparseDelta:
    return SparseDelta(torch.tensor(indices, dtype=torch.int32), torch.tensor(values), shape)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 3, 2), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_from_dense_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator).to(dtype)
    dense = dense * (torch.rand(shape, generator=generator) < 0.5)
    sparse = SparseDelta.from_dense(dense)
    assert sparse.nnz == int(dense.count_nonzero())
    assert sparse.shape == shape
    assert sparse.values.dtype == dtype
    assert torch.equal(sparse.to_dense(), dense)


def test_counts() -> None:
    sparse = delta([0, 5], [1.0, -2.0])
    assert (sparse.nnz, sparse.numel, sparse.density) == (2, 6, 2 / 6)
    nothing = delta([], [], shape=(0, 7))
    assert (nothing.nnz, nothing.numel, nothing.density) == (0, 0, 0.0)


def test_between_reads_only_the_given_entries_in_fp32() -> None:
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16).t()
    tuned = base + torch.tensor([[0.5, 0.25], [0.125, 8.0]], dtype=torch.bfloat16)
    change = SparseDelta.between(base, tuned, torch.tensor([1, 3], dtype=torch.int32))
    assert change.values.dtype == torch.float32
    expected = (tuned.float() - base.float()).reshape(-1)[[1, 3]]
    assert torch.equal(change.values, expected)
    with pytest.raises(DeltaError, match="differ in shape"):
        SparseDelta.between(base, torch.zeros(4), change.indices)


def test_to_changes_the_values_only() -> None:
    sparse = delta([1, 2], [0.5, 3.0])
    half = sparse.to(dtype=torch.float16)
    assert half.values.dtype == torch.float16
    assert half.indices is sparse.indices
    assert sparse.to("cpu") is sparse
    with pytest.raises(DeltaError, match="infinity"):
        delta([1], [1e6]).to(dtype=torch.float16)


@pytest.mark.parametrize(
    ("indices", "values", "fault"),
    [
        ([1, 0], [1.0, 1.0], "sorted"),
        ([1, 1], [1.0, 1.0], "unique"),
        ([-1, 0], [1.0, 1.0], "from -1"),
        ([0, 6], [1.0, 1.0], "6 entries"),
        ([0, 1], [1.0], "as many values"),
        ([0], [float("nan")], "NaN"),
        ([0], [float("inf")], "infinity"),
    ],
)
def test_what_does_not_fit_is_refused(indices: list[int], values: list[float], fault: str) -> None:
    with pytest.raises(DeltaError, match=fault):
        delta(indices, values)


def test_types_are_refused() -> None:
    good = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(DeltaError, match="int32"):
        SparseDelta(good.long(), torch.ones(2), (2, 3))
    with pytest.raises(DeltaError, match="1-D"):
        SparseDelta(good.reshape(1, 2), torch.ones(1, 2), (2, 3))
    with pytest.raises(DeltaError, match="fp16, bf16 or fp32"):
        SparseDelta(good, torch.ones(2, dtype=torch.int64), (2, 3))
    with pytest.raises(DeltaError, match="cannot have the shape"):
        SparseDelta(good, torch.ones(2), (-2, -3))
    with pytest.raises(DeltaError, match="one device"):
        SparseDelta(good, torch.ones(2, device="meta"), (2, 3))


def test_indices_past_int32_are_int64() -> None:
    assert index_dtype(2**31 - 1) == torch.int32
    assert index_dtype(2**31) == torch.int64
    far = SparseDelta(torch.tensor([2**31]), torch.ones(1), (2**16, 2**16))
    assert far.density == 2**-32
    with pytest.raises(DeltaError, match="int64"):
        SparseDelta(torch.tensor([1], dtype=torch.int32), torch.ones(1), (2**16, 2**16))
