"""SparseTuner in the ways that models are trained: equal to dense training at the entries."""

import copy
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from masked_training import gradient_at, train_dense, train_sparse
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from shira_diffusion import masks
from shira_diffusion.errors import MismatchError
from shira_diffusion.tune import SparseTuner


def llama(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).train()


def language_loss(model: nn.Module, batch: int) -> Tensor:
    tokens = torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(batch))
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def is_target(name: str) -> bool:
    """Llama's targets in the paper, and the embedding, which may be tied to the head."""
    return any(part in name for part in ("q_proj", "k_proj", "v_proj", "up_", "down_", "embed"))


def chosen(model: nn.Module, kind: str = "rand") -> dict[str, Tensor]:
    probe = copy.deepcopy(model)
    language_loss(probe, 99).backward()
    return {
        name: masks.select(
            kind,
            weight,
            masks.count(weight.numel(), 0.05),
            generator=masks.layer_generator(0, name),
            gradient=weight.grad,
        )
        for name, weight in probe.named_parameters()
        if is_target(name)
    }


def gradients(model: nn.Module, indices: Mapping[str, Tensor], batches: int = 1) -> Tensor:
    """What a fresh tuner gathers from the first batches."""
    with SparseTuner(model, indices) as tuner:
        for batch in range(batches):
            language_loss(model, batch).backward()
        assert tuner.values.grad is not None
        return tuner.values.grad.clone()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", masks.KINDS)
def test_a_language_model_equals_its_dense_training(kind: str, tied: bool) -> None:
    sparse, dense, base = (llama(tied=tied) for _ in range(3))
    indices = chosen(base, kind)
    tuner = SparseTuner(sparse, indices)
    adamw = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0)
    train_sparse(sparse, tuner, adamw(tuner.parameters()), language_loss, range(3))
    trained = [dense.get_parameter(name) for name in indices]
    train_dense(dense, indices, adamw(trained), language_loss, range(3))
    for name, weight in sparse.named_parameters():
        assert torch.equal(weight, dense.get_parameter(name)), name
        changed = (weight != base.get_parameter(name)).flatten().nonzero().squeeze(1)
        assert set(changed.tolist()) <= set(indices.get(name, torch.empty(0)).tolist())
    assert list(sparse.state_dict()) == list(base.state_dict())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain, checkpointed = llama(), llama()
    indices = chosen(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.enable_input_require_grads()
    assert torch.equal(gradients(plain, indices, 2), gradients(checkpointed, indices, 2))


def test_a_layer_used_inside_and_outside_of_a_reentrant_pass() -> None:
    def loss(layer: nn.Module, *, checkpointed: bool) -> Tensor:
        hidden = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
        for _ in range(2):
            inner = checkpoint(layer, hidden, use_reentrant=True) if checkpointed else layer(hidden)
            hidden = layer(inner)
        return hidden.square().sum()

    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    indices = {"weight": torch.tensor([0, 4, 5], dtype=torch.int32)}
    loss(layer, checkpointed=False).backward()
    expected = gradient_at(layer, indices)
    tuner = SparseTuner(layer, indices)
    loss(layer, checkpointed=True).backward()
    torch.testing.assert_close(tuner.values.grad, expected)


def test_autocast_gathers_what_a_dense_weight_gets() -> None:
    sparse, dense = llama(), llama()
    indices = chosen(sparse)
    tuner = SparseTuner(sparse, indices)
    for model in (sparse, dense):
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, 0)
        loss.backward()
    assert torch.equal(tuner.values.grad, gradient_at(dense, indices))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_fp32(dtype: torch.dtype) -> None:
    sparse, dense = llama(dtype=dtype), llama(dtype=dtype)
    indices = chosen(llama())
    tuner = SparseTuner(sparse, indices)
    expected = torch.zeros_like(tuner.values)
    for batch in range(3):
        language_loss(sparse, batch).backward()
        language_loss(dense, batch).backward()
        expected += gradient_at(dense, indices)
        dense.zero_grad()
    assert tuner.values.grad is not None
    assert tuner.values.grad.dtype == torch.float32
    assert torch.equal(tuner.values.grad, expected)


def test_clipping_sees_the_norm_of_the_masked_gradient() -> None:
    sparse, dense = llama(), llama()
    indices = chosen(sparse)
    tuner = SparseTuner(sparse, indices)
    language_loss(sparse, 0).backward()
    language_loss(dense, 0).backward()
    expected = gradient_at(dense, indices)
    norm = nn.utils.clip_grad_norm_(tuner.parameters(), 1e-3)
    torch.testing.assert_close(norm, expected.norm())
    torch.testing.assert_close(tuner.values.grad, expected * (1e-3 / expected.norm()))


def test_weights_of_several_dtypes() -> None:
    model, before = llama(), llama()
    for one in (model, before):
        one.model.layers[0].mlp.to(torch.bfloat16)
        one.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: args[0].bfloat16())
    indices = chosen(model)
    tuner = SparseTuner(model, indices)
    assert sorted(tuner.indices) == sorted(indices)
    with torch.no_grad():
        tuner.values += torch.linspace(0.5, 1.5, tuner.values.numel())
    tuner.write()
    parts = tuner.values.detach().split([some.numel() for some in tuner.indices.values()])
    for (name, some), part in zip(tuner.indices.items(), parts, strict=True):
        weight = model.get_parameter(name).detach()
        wanted = before.get_parameter(name).detach().clone()
        wanted.view(-1)[some.long()] = part.to(wanted.dtype)
        assert torch.equal(weight, wanted), name
        change = part - before.get_parameter(name).detach().flatten()[some.long()].float()
        assert torch.equal(tuner.deltas()[name].values, change)
    tuner.close()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before.get_parameter(name))


def test_an_embedding_with_sparse_gradients() -> None:
    tokens = torch.tensor([1, 1, 3])
    embed = nn.Embedding(5, 4, sparse=True)
    indices = {"weight": torch.tensor([0, 4, 7, 13], dtype=torch.int32)}
    embed(tokens).square().sum().backward()
    expected = gradient_at(embed, indices)
    tuner = SparseTuner(embed, indices)
    embed(tokens).square().sum().backward()
    assert torch.equal(tuner.values.grad, expected)


def test_a_backward_pass_that_fails_leaves_nothing_behind() -> None:
    model, untouched = llama(), llama()
    indices = chosen(model)
    tuner = SparseTuner(model, indices)

    def fail(gradient: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    # The second layer's gradients have arrived when the first one's output fails.
    hook = model.model.layers[0].register_forward_hook(
        lambda *seen: seen[2].register_hook(fail) and None
    )
    loss = language_loss(model, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    hook.remove()
    language_loss(model, 0).backward()
    assert tuner.values.grad is not None
    assert torch.equal(tuner.values.grad, gradients(untouched, indices))


def test_the_gradient_keeps_its_memory() -> None:
    model = llama()
    tuner = SparseTuner(model, chosen(model))
    held = tuner.hold_gradient()
    assert held is tuner.values.grad
    assert not held.any()
    language_loss(model, 0).backward()
    assert tuner.values.grad is held
    once = held.clone()
    tuner.values.grad = None
    language_loss(model, 0).backward()
    assert tuner.values.grad is held
    assert torch.equal(held, once)
    language_loss(model, 0).backward()
    assert torch.equal(held, once + once)


def test_a_part_that_is_not_reached_gets_no_gradient() -> None:
    pair = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    some = torch.tensor([1, 5], dtype=torch.int32)
    tuner = SparseTuner(pair, {"0.weight": some, "1.weight": some})
    pair[1](torch.ones(1, 3)).sum().backward()
    assert tuner.values.grad is not None
    assert tuner.values.grad.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_module_is_tuned_by_one_tuner_at_a_time() -> None:
    model = llama()
    indices = chosen(model)
    tuner = SparseTuner(model, indices)
    with pytest.raises(MismatchError, match="already"):
        SparseTuner(model, indices)
    tuner.close()
    with SparseTuner(model, indices):
        pass
    SparseTuner(model, indices)  # Nobody holds this one, so that it goes.
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


def test_a_cast_module_is_refused_until_it_is_back() -> None:
    model = llama()
    tuner = SparseTuner(model, chosen(model))
    model.to(torch.bfloat16)
    with pytest.raises(MismatchError, match=r"bfloat16.*float32.*back"):
        tuner.write()
    with pytest.raises(MismatchError, match="back"):
        tuner.close()
    model.to(torch.float32)
    tuner.close()
    for name, some in tuner.indices.items():
        held = model.get_parameter(name).flatten()[some.long()]
        assert torch.equal(held, llama().get_parameter(name).flatten()[some.long()])


def test_a_copy_of_a_tuned_module_computes_the_same() -> None:
    model = llama()
    with SparseTuner(model, chosen(model)):
        twin = copy.deepcopy(model)
        assert torch.equal(language_loss(twin, 0), language_loss(model, 0))
        twin.load_state_dict(model.state_dict())
    assert torch.equal(language_loss(twin, 0), language_loss(model, 0))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_without_entries_stays_as_it_is(compiled: bool) -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    base = copy.deepcopy(pair)
    none, some = torch.empty(0, dtype=torch.int32), torch.tensor([1, 5], dtype=torch.int32)
    tuner = SparseTuner(pair, {"0.weight": none, "1.weight": some})
    run = torch.compile(pair, backend="aot_eager", fullgraph=True) if compiled else pair
    run(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(tuner.parameters(), lr=1.0).step()
    tuner.write()
    assert torch.equal(pair[0].weight, base[0].weight)
    assert (pair[1].weight != base[1].weight).flatten().nonzero().flatten().tolist() == [1, 5]
    assert tuner.deltas()["0.weight"].nnz == 0
