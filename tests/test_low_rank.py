"""LoRA and DoRA as factors: in the switcher, together with SHiRA, and always back to the base."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from shira_diffusion import fuse
from shira_diffusion.adapter import Adapter, AdapterInfo, Delta
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, FormatError, MismatchError, SettingError
from shira_diffusion.formats import lora
from shira_diffusion.lowrank import DoraDelta, LowRankDelta
from shira_diffusion.pipeline import load_adapters
from shira_diffusion.residency import Residency
from shira_diffusion.switch import AdapterSwitcher

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.Conv2d(3, 4, 3), nn.Linear(8, 5, bias=False)
    return nn.Sequential(*layers).to(dtype)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def assert_weights(module: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        assert torch.equal(weight.detach(), expected[name]), name


def low_rank(shape: tuple[int, ...], seed: int, kind: type[LowRankDelta]) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    columns = 1
    for size in shape[1:]:
        columns *= size
    up = torch.randn(shape[0], 2, generator=generator).half()
    down = torch.randn(2, columns, generator=generator).half()
    if kind is DoraDelta:
        magnitude = torch.rand(shape[0], 1, generator=generator) + 0.5
        return DoraDelta(up, down, 0.25, shape, magnitude)
    return LowRankDelta(up, down, 0.25, shape)


def dense_change(delta: Delta, base: Tensor) -> Tensor:
    """By the papers' formulas."""
    if isinstance(delta, SparseDelta):
        return delta.to_dense().float()
    product = (delta.up.float() @ delta.down.float()) * delta.scale
    if not isinstance(delta, DoraDelta):
        return product.reshape(delta.shape)
    matrix = base.float().flatten(1)
    turned = matrix + product
    rows = torch.stack(
        [
            row * (m / row.square().sum().sqrt())
            for row, m in zip(turned, delta.magnitude[:, 0], strict=True)
        ]
    )
    return (rows - matrix).reshape(delta.shape)


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """A LoRA and a DoRA of all matrices, a LoRA of one, and two sparse adapters."""
    shapes = {name: tuple(one.shape) for name, one in module.named_parameters()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    generator = torch.Generator().manual_seed(5)

    def sparse() -> Adapter:
        deltas = {
            name: SparseDelta.from_dense(
                torch.randn(shape, generator=generator)
                * (torch.rand(shape, generator=generator) < 0.3)
            )
            for name, shape in shapes.items()
        }
        return Adapter(deltas, AdapterInfo("sparse"))

    def factors(kind: type[LowRankDelta], names: list[str], seed: int) -> Adapter:
        deltas = {name: low_rank(matrices[name], seed + n, kind) for n, name in enumerate(names)}
        return Adapter(deltas, AdapterInfo(kind.__name__))

    return {
        "lora": factors(LowRankDelta, list(matrices), 10),
        "dora": factors(DoraDelta, list(matrices), 20),
        "one": factors(LowRankDelta, ["2.weight"], 30),
        "sparse": sparse(),
        "thin": sparse(),
    }


MIXES = [
    {"lora": 1.0},
    {"dora": 1.0},
    {"lora": 0.5, "sparse": 1.0},
    {"sparse": 1.0},
    {"one": -0.7, "sparse": 0.3, "thin": 1.0},
    {"thin": 1.0},
    {"lora": 1.0, "dora": 0.5, "sparse": 0.2, "thin": 2.0},
    {"lora": 0.3},
    {"one": 2.0},
    {},
    {"sparse": 0.4, "thin": 0.1},
]


def expected(
    base: dict[str, Tensor], known: dict[str, Adapter], mix: dict[str, float]
) -> dict[str, Tensor]:
    result = {}
    for name, weight in base.items():
        terms = [
            dense_change(known[one].deltas[name], weight) * strength
            for one, strength in mix.items()
            if name in known[one].deltas
        ]
        total = torch.zeros_like(weight, dtype=torch.float32)
        for term in torch.stack(terms).sort(dim=0).values if terms else ():
            total = total + term
        result[name] = (weight.float() + total).to(weight.dtype)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_mix_in_any_order_and_back(dtype: torch.dtype) -> None:
    module = net(dtype)
    base, known = weights(module), adapters(module)
    switcher = AdapterSwitcher(module)
    for name, adapter in known.items():
        switcher.add(name, adapter)
    addresses = {name: one.data_ptr() for name, one in module.named_parameters()}
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    for before in MIXES:
        for mix in MIXES:
            switcher.set(before)
            switcher.set(mix)
            wanted = expected(base, known, mix)
            for name, weight in module.named_parameters():
                torch.testing.assert_close(
                    weight.detach(), wanted[name], rtol=tolerance, atol=tolerance
                )
                if not any(isinstance(known[one].deltas.get(name), DoraDelta) for one in mix):
                    assert torch.equal(weight, wanted[name]), name
            with switcher.using({}):
                assert_weights(module, base)
    switcher.clear()
    assert_weights(module, base)
    assert addresses == {name: one.data_ptr() for name, one in module.named_parameters()}


@pytest.mark.gpu
def test_on_a_gpu_and_from_it_to_the_host() -> None:
    module = net(torch.bfloat16).cuda()
    base, known = weights(module), adapters(net())
    switcher = AdapterSwitcher(module)
    for name, adapter in known.items():
        switcher.add(name, adapter)
    for before in MIXES:
        for mix in MIXES:
            switcher.set(before)
            switcher.set(mix)
            for name, weight in expected(weights(net(torch.bfloat16)), known, mix).items():
                live = module.get_parameter(name).detach().cpu()
                torch.testing.assert_close(live, weight, rtol=2**-7, atol=2**-7)
            with switcher.using({}):
                assert_weights(module, base)
    switcher.set({"lora": 1.0, "sparse": 0.5})
    module.cpu()
    switcher.clear()
    assert_weights(module, {name: one.cpu() for name, one in base.items()})


def test_the_model_is_followed_through_moves_and_casts() -> None:
    module = net()
    known = adapters(module)
    switcher = AdapterSwitcher(module)
    for name, adapter in known.items():
        switcher.add(name, adapter)
    switcher.set({"lora": 0.5, "sparse": 1.0})
    module.half()
    cast = {name: one.half() for name, one in weights(net()).items()}
    switcher.set({"dora": 1.0})
    switcher.clear()
    assert_weights(module, cast)


@pytest.mark.parametrize("mix", [{"lora": 1.0}, {"one": 1.0, "sparse": 1.0}, {"dora": 1.0}])
def test_weights_that_something_else_changed_are_not_overwritten(mix: dict[str, float]) -> None:
    module = net()
    known = adapters(module)
    switcher = AdapterSwitcher(module)
    for name, adapter in known.items():
        switcher.add(name, adapter)
    switcher.set(mix)
    inside = weights(module)
    with torch.no_grad():
        module[2].weight[0, 0] += 1.0
    spoiled = weights(module)
    for other in ({}, {"thin": 1.0}, {"lora": 0.1}):
        with pytest.raises(MismatchError, match=r"'2\.weight' cannot be given back"):
            switcher.set(other)
        assert_weights(module, spoiled)
        assert switcher.active == mix
    with torch.no_grad():
        module[2].weight.copy_(inside["2.weight"])
    switcher.clear()
    assert_weights(module, weights(net()))


def test_a_mix_out_of_range_changes_nothing() -> None:
    module = net(torch.float16)
    base = weights(module)
    switcher = AdapterSwitcher(module)
    switcher.add("lora", adapters(module)["lora"])
    for strength, error in ((1e6, MismatchError), (3.4e38, SettingError)):
        with pytest.raises(error):
            switcher.set({"lora": strength})
        assert_weights(module, base)
        assert switcher.active == {}


def test_factors_wait_on_disk_and_keep_their_size(tmp_path: Path) -> None:
    module = net()
    base, known = weights(module), adapters(module)
    residency = Residency(host_bytes=1, folder=tmp_path)
    switcher = AdapterSwitcher(module, residency)
    for name in ("lora", "dora", "sparse"):
        switcher.add(name, known[name])
    assert residency.where("lora") == "disk"
    plain = AdapterSwitcher(other := net())
    for name in ("lora", "dora", "sparse"):
        plain.add(name, known[name])
    for mix in ({"lora": 1.0}, {"dora": 0.5, "sparse": 1.0}):
        switcher.set(mix)
        plain.set(mix)
        assert_weights(module, weights(other))
    switcher.clear()
    assert_weights(module, base)


def test_factors_take_the_room_of_factors() -> None:
    delta = LowRankDelta(torch.ones(2048, 4).half(), torch.ones(4, 1024).half(), 1.0, (2048, 1024))
    assert (delta.nbytes, delta.nnz, delta.density, delta.rank) == (24576, 2**21, 1.0, 4)


def test_a_lora_goes_where_sparse_adapters_go(tmp_path: Path) -> None:
    module = net()
    known = adapters(module)
    for adapter in (known["lora"], fuse.weighted_sum([(known["lora"], 1.0)], name="sum")):
        adapter.save(tmp_path / "native.safetensors")
        again = Adapter.load(tmp_path / "native.safetensors")
        for name, delta in known["lora"].deltas.items():
            assert torch.equal(again.deltas[name].to_dense(), delta.to_dense()), name
    assert fuse.prune(known["lora"], 0.5).nnz == round(known["lora"].nnz / 2)
    for refused in (
        lambda: known["dora"].save(tmp_path / "no.safetensors"),
        lambda: fuse.weighted_sum([(known["dora"], 1.0)], name="sum"),
        lambda: lora.save(known["dora"], tmp_path / "no.safetensors", 2),
    ):
        with pytest.raises(DeltaError, match="depends on the base weight"):
            refused()
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("up", "down", "more", "fault"),
    [
        ((4, 2), (3, 5), {}, "do not multiply"),
        ((4, 0), (0, 5), {}, "do not multiply"),
        ((5, 2), (2, 5), {}, "make no weight"),
        ((4, 2), (2, 5), {"scale": float("nan")}, "NaN"),
        ((4, 2), (2, 5), {"scale": 1e39}, "infinity"),
        ((4, 2), (2, 5), {"magnitude": torch.ones(3, 1)}, "neither rows nor columns"),
        ((4, 2), (2, 5), {"magnitude": torch.full((4, 1), torch.nan)}, "NaN"),
    ],
)
def test_factors_that_do_not_fit(
    up: tuple[int, int], down: tuple[int, int], more: dict[str, object], fault: str
) -> None:
    fields = {"scale": 1.0, "shape": (4, 5), **more}
    kind = DoraDelta if "magnitude" in more else LowRankDelta
    with pytest.raises(DeltaError, match=fault):
        kind(torch.ones(up), torch.ones(down), **fields)  # type: ignore[arg-type]


def merged(
    pipe: StableDiffusionXLPipeline, **config: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """PEFT's DoRA in the UNet: what it saves, and the weights that it merges."""
    torch.manual_seed(3)
    targets = ["to_q", "to_k", "conv1"]
    settings = LoraConfig(target_modules=targets, use_dora=True, **config)
    inject_adapter_in_model(settings, pipe.unet)
    for name, weight in pipe.unet.named_parameters():
        if "lora_" in name:
            shift = torch.randn(weight.shape) * 0.1
            weight.data = weight.data + shift.abs() if "magnitude" in name else shift
    state = {
        f"unet.{name}": one.contiguous()
        for name, one in get_peft_model_state_dict(pipe.unet).items()
    }
    for layer in pipe.unet.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    return state, {
        name.replace(".base_layer", ""): weight.detach().clone()
        for name, weight in pipe.unet.named_parameters()
        if "lora_" not in name
    }


def test_a_dora_of_peft_gives_pefts_merged_weights(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline, toy_base: Path
) -> None:
    state, wanted = merged(toy_pipe, r=3, lora_alpha=2)
    stated = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.use_dora": True})}
    save_file(state, tmp_path / "dora.safetensors", metadata=stated)
    pipe = StableDiffusionXLPipeline.from_pretrained(toy_base, dtype=torch.float32)
    base = weights(pipe.unet)
    assert Adapter.load(tmp_path / "dora.safetensors").info.method == "dora"
    switcher = load_adapters(pipe, tmp_path / "dora.safetensors")
    assert switcher.active == {"dora": 1.0}
    changed = 0
    for name, weight in pipe.unet.named_parameters():
        torch.testing.assert_close(weight.detach(), wanted[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(weight, base[name])
    assert changed == len([name for name in state if "magnitude" in name])
    switcher.clear()
    assert_weights(pipe.unet, base)


def test_three_lines_put_adapters_on_a_pipeline(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline
) -> None:
    base = weights(toy_pipe.unet)
    generator = torch.Generator().manual_seed(0)
    name = next(one for one in base if one.endswith("to_q.weight"))
    layer, shape = f"unet.{name.removesuffix('.weight')}", base[name].shape
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(2, shape[1], generator=generator),
            f"{layer}.lora_B.weight": torch.randn(shape[0], 2, generator=generator),
        },
        tmp_path / "one.safetensors",
    )
    dense = torch.zeros(shape)
    dense[0, 0] = 0.5
    sparse = Adapter({f"unet.{name}": SparseDelta.from_dense(dense)}, AdapterInfo("one"))
    sparse.save(tmp_path / "folder" / "adapter.safetensors")
    switcher = load_adapters(
        toy_pipe, tmp_path / "one.safetensors", tmp_path / "folder", strength=0.5
    )
    assert switcher.active == {"one": 0.5, "one-2": 0.5}
    assert load_adapters(toy_pipe, sparse) is switcher
    assert switcher.active == {"one": 0.5, "one-2": 0.5, "one-3": 1.0}
    for source, error in (("nowhere", FormatError), ("./a.safetensors", FormatError)):
        with pytest.raises(error, match="no such file"):
            load_adapters(toy_pipe, source)
    stranger = Adapter({"unet.x": SparseDelta.from_dense(dense)}, AdapterInfo("x"))
    with pytest.raises(MismatchError, match=r"no weight .unet\.x."):
        load_adapters(toy_pipe, sparse, stranger)
    assert switcher.names == ("one", "one-2", "one-3")
    switcher.clear()
    assert_weights(toy_pipe.unet, base)


def test_from_the_hub(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str], list[str] | None]] = []

    def hub(hub_id: str, allow_patterns: list[str], ignore_patterns: list[str] | None) -> str:
        asked.append((hub_id, allow_patterns, ignore_patterns))
        if hub_id == "no/such":
            raise OSError("404")
        return str(tmp_path)

    monkeypatch.setattr("shira_diffusion.pipeline.snapshot_download", hub)
    name, weight = next(iter(weights(toy_pipe.unet).items()))
    dense = torch.zeros_like(weight)
    dense.view(-1)[0] = 1.0
    adapter = Adapter({f"unet.{name}": SparseDelta.from_dense(dense)}, AdapterInfo("theirs"))
    adapter.save(tmp_path / "theirs.safetensors")
    switcher = load_adapters(toy_pipe, "some/one")
    load_adapters(toy_pipe, "some/one", weight_name="theirs.safetensors")
    assert switcher.names == ("theirs", "theirs-2")
    assert asked == [
        ("some/one", ["*.safetensors", "adapter_config.json"], ["*/*"]),
        ("some/one", ["theirs.safetensors"], None),
    ]
    with pytest.raises(FormatError, match=r"'no/such' cannot be had from the hub: 404"):
        load_adapters(toy_pipe, "no/such")
