"""Text encoders and new words train with the UNet, and their files load where users load them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor
from training_toys import CPU, make_batches, no_gradients, settings

from emoji_xl.architecture import TOY, build_pipeline, save_pipeline
from emoji_xl.vocabulary import learn_tokenizer
from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher, hub
from shira_diffusion.cards import write_card
from shira_diffusion.words import TOKENIZERS
from training import methods
from training.config import Config
from training.data import Dataset
from training.errors import ConfigError
from training.loop import Loop
from training.methods import Together
from training.objective import Objective
from training.prepare import check_texts
from training.texts import TEXT_ENCODERS, kept, live

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

WORD = "<ink>"
PROMPT = f"a castle, {WORD} style"


@pytest.fixture(scope="module")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, with text encoders of two layers: of the first one's last SDXL reads nothing."""
    folder = tmp_path_factory.mktemp("base") / "toy-xl"
    tokenizer = learn_tokenizer(WORDS, tokens=640, prompt_tokens=TOY.prompt_tokens)
    save_pipeline(build_pipeline(dataclasses.replace(TOY, text_layers=2), tokenizer), folder)
    return folder


def fresh(base: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def objective_of(pipe: StableDiffusionXLPipeline) -> Objective:
    return Objective.of(pipe, CPU, texts=live(pipe))


def loop_of(
    pipe: StableDiffusionXLPipeline, config: Config, stored: dict[str, Any] | None = None
) -> tuple[Loop, Together]:
    batches = make_batches(pipe, captions=(f"a {WORD} castle", "a robot"))
    method = methods.create_all(
        config, pipe, no_gradients, copy.deepcopy(stored["method"]) if stored else None
    )
    loop = Loop(config, method, objective_of(pipe), batches, CPU)
    if stored:
        loop.restore(copy.deepcopy(stored))
    return loop, method


def texts(**changes: Any) -> Config:
    defaults = {"train_text_encoders": True, "new_token": WORD, "density": 0.3, "rank": 2}
    return settings(**{**defaults, **changes})


def embeddings(pipe: StableDiffusionXLPipeline, prompt: str = PROMPT) -> Tensor:
    with torch.no_grad():
        embeds, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    return torch.cat([embeds.flatten(), pooled.flatten()])


def weights(pipe: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    return {
        f"{component}.{name}": weight.detach().clone()
        for component in ("unet", *TEXT_ENCODERS)
        for name, weight in getattr(pipe, component).named_parameters()
    }


def test_live_texts_are_what_is_kept_of_encoders_that_stay(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    batch = make_batches(toy_pipe).draw(0, CPU)
    for mine, theirs in zip(live(toy_pipe)(batch), kept(batch), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("method", ["shira", "lora"])
def test_files_give_the_trained_encoders_and_word_to_a_fresh_pipeline(
    toy_base: Path, tmp_path: Path, method: str
) -> None:
    pipe = fresh(toy_base)
    before = weights(pipe)
    loop, trained = loop_of(pipe, texts(method=method, lr=3e-2, token_lr=0.2, token_vectors=3))
    list(loop.run())
    expected = embeddings(pipe)
    trained.save(tmp_path / "adapter.safetensors", AdapterInfo("x", method=method))

    plain = fresh(toy_base)
    words = load_file(tmp_path / "embeddings.safetensors")
    assert words["clip_l"].shape == (3, plain.text_encoder.config.hidden_size)
    for key, (component, tokenizer) in zip(("clip_l", "clip_g"), TOKENIZERS.items(), strict=True):
        plain.load_textual_inversion(
            words[key],
            token=WORD,
            text_encoder=getattr(plain, component),
            tokenizer=getattr(plain, tokenizer),
        )
    with_word = embeddings(plain)
    assert (with_word - expected).abs().max() > 1e-2, "the encoders have learned nothing"
    if method == "shira":
        switcher = AdapterSwitcher(plain)
        switcher.add("x", Adapter.load(tmp_path / "adapter.safetensors"))
        switcher.set({"x": 1.0})
    else:
        plain.load_lora_weights(tmp_path / "adapter.safetensors")
    torch.testing.assert_close(embeddings(plain), expected, rtol=5e-3, atol=5e-3)

    trained.close()
    after = weights(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert WORD not in pipe.tokenizer.get_vocab()


@pytest.mark.parametrize("method", ["shira", "lora"])
def test_resumed_training_of_texts_equals_uninterrupted(toy_base: Path, method: str) -> None:
    config = texts(method=method, token_lr=0.1, text_lr=5e-3)
    whole, _ = loop_of(fresh(toy_base), config)
    losses = [result.loss for result in whole.run()]

    first, _ = loop_of(fresh(toy_base), config)
    steps = first.run()
    again = [next(steps).loss for _ in range(2)]
    second, _ = loop_of(fresh(toy_base), config, first.state())
    again += [result.loss for result in second.run()]
    assert again == losses
    for left, right in zip(whole._values, second._values, strict=True):
        assert torch.equal(left, right)


def test_only_the_new_rows_and_the_targets_move_each_at_its_rate(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    config = texts(text_lr=1e-7, token_lr=0.1, lr=1e-3, token_init="castle", steps=1, clip=0.0)
    loop, _ = loop_of(toy_pipe, config)
    before = weights(toy_pipe)
    table = toy_pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    castle = toy_pipe.tokenizer("castle", add_special_tokens=False).input_ids
    known = table[[castle[number % len(castle)] for number in range(2)]]
    assert torch.equal(table[-2:], known)
    list(loop.run())
    moved = {
        name: (weight - before[name]).abs().max() for name, weight in weights(toy_pipe).items()
    }
    for name, distance in moved.items():
        if "token_embedding" in name:
            assert distance == pytest.approx(0.1, rel=0.01), name
        elif name.startswith("text_encoder") and "self_attn" in name and "weight" in name:
            unread = name.startswith("text_encoder.") and "layers.1." in name
            assert distance == 0 if unread else 0 < distance < 2e-7, name
        elif name.startswith("text_encoder"):
            assert distance == 0, name
    (old,) = (
        w for n, w in weights(toy_pipe).items() if n.startswith("text_encoder.") and "token_" in n
    )
    assert torch.equal(old[:-2], table[:-2])


def test_a_new_word_is_new_and_in_a_caption(toy_pipe: StableDiffusionXLPipeline) -> None:
    data = Dataset((), (), (), (), ())
    with pytest.raises(ConfigError, match="no caption has this word"):
        check_texts(settings(new_token=WORD), toy_pipe, data)
    for known in ("Happy", "happy"):
        with pytest.raises(ConfigError, match="the base knows this word"):
            check_texts(settings(new_token=known), toy_pipe, data)
    check_texts(settings(), toy_pipe, data)


def test_encoders_without_any_target_are_refused(toy_pipe: StableDiffusionXLPipeline) -> None:
    with pytest.raises(ConfigError, match="none of the targets conv"):
        methods.create_all(texts(targets=("conv",)), toy_pipe, no_gradients, None)


def test_the_words_embeddings_go_to_the_hub_with_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for name in ("adapter", "embeddings"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    words = tmp_path / "embeddings.safetensors"
    hub.Package(tmp_path / "adapter.safetensors", "# Ink", None, words).write(tmp_path / "hub")
    found = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
    assert found["embeddings.safetensors"] == b"embeddings"
    info = AdapterInfo("ink", method="shira", training={"new_token": WORD})
    for hub_id, where in (
        ("", "adapters/ink/embeddings"),
        ("ada/ink", 'hf_hub_download("ada/ink"'),
    ):
        card = write_card(info, hub_id=hub_id)
        assert where in card
        assert card.count(f'token="{WORD}"') == 2
    assert "textual_inversion" not in write_card(AdapterInfo("ink", method="shira"))
