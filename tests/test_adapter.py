"""Adapter and AdapterInfo: read-only values that refuse what cannot be stored."""

import pytest
import torch

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, SettingError


def delta(*indices: int) -> SparseDelta:
    return SparseDelta(torch.tensor(indices, dtype=torch.int32), torch.ones(len(indices)), (4, 5))


def test_deltas_are_sorted_and_read_only() -> None:
    adapter = Adapter({"unet.b.weight": delta(1), "unet.a.weight": delta(2, 3)}, AdapterInfo("x"))
    assert list(adapter.deltas) == ["unet.a.weight", "unet.b.weight"]
    assert (adapter.nnz, adapter.density) == (3, 3 / 40)
    with pytest.raises(TypeError):
        adapter.deltas["unet.c.weight"] = delta(1)  # type: ignore[index]
    assert Adapter({}, AdapterInfo("x")).density == 0.0


def test_text_encoder_names_are_stored_with_text_model() -> None:
    new, old = "text_encoder.encoder.layers.0.q.weight", "text_encoder.text_model.encoder.layers.0"
    adapter = Adapter({new: delta(1), "unet.encoder.weight": delta(1)}, AdapterInfo("x"))
    assert list(adapter.deltas) == [f"{old}.q.weight", "unet.encoder.weight"]
    with pytest.raises(DeltaError, match="same weight"):
        Adapter({new: delta(1), f"{old}.q.weight": delta(2)}, AdapterInfo("x"))


def test_for_base_keeps_what_the_adapter_touches() -> None:
    info = AdapterInfo("x", title="X", base_fingerprint={"unet": "old"})
    adapter = Adapter({"unet.a.weight": delta(1)}, info)
    moved = adapter.for_base({"unet": "new", "text_encoder": "other"})
    assert dict(moved.info.base_fingerprint) == {"unet": "new"}
    assert moved.info.title == "X"
    assert dict(adapter.info.base_fingerprint) == {"unet": "old"}
    assert moved.deltas["unet.a.weight"] is adapter.deltas["unet.a.weight"]


def test_for_base_of_a_bare_module() -> None:
    adapter = Adapter({"a.weight": delta(1)}, AdapterInfo("x"))
    assert dict(adapter.for_base({"": "mark"}).info.base_fingerprint) == {"": "mark"}


def test_info_is_text_and_read_only() -> None:
    info = AdapterInfo("x", trigger_words=["a", "b"], training={"steps": "200"})  # type: ignore[arg-type]
    assert info.trigger_words == ("a", "b")
    assert info == AdapterInfo("x", trigger_words=("a", "b"), training={"steps": "200"})
    with pytest.raises(TypeError):
        info.training["steps"] = "1"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": 3}, "name must be text"),
        ({"name": "x", "title": "\ud800"}, "Unicode"),
        ({"name": "x", "trigger_words": "abc"}, "sequence"),
        ({"name": "x", "tags": (1,)}, "tags must be text"),
        ({"name": "x", "training": {"steps": 200}}, "training must be text"),
        ({"name": "x", "base_fingerprint": "abc"}, "map text to text"),
    ],
)
def test_info_refuses(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingError, match=fault):
        AdapterInfo(**fields)  # type: ignore[arg-type]
