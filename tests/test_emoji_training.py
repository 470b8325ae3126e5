"""The base's recipe against diffusers' own pipeline and scheduler, and toy runs of both stages."""

import copy
import zipfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from emoji_xl.architecture import TOY
from emoji_xl.artwork import Picture
from emoji_xl.captions import caption, made_up_caption
from emoji_xl.clock import Clock, learning_rate
from emoji_xl.data import Artwork, caption_tokens, empty_tokens, on_white, shift_and_scale
from emoji_xl.modifiers import MODIFIERS
from emoji_xl.stages import averaged_pipeline
from emoji_xl.train_base import (
    Batches,
    Denoiser,
    base_updater,
    noise_and_target,
    scheduler_alphas,
    train_base,
)
from emoji_xl.train_vae import encode, normalise_latents, psnr, train_vae, vae_updater
from emoji_xl.updater import Updater, seconds_of


@pytest.fixture
def artwork() -> Artwork:
    pictures = tuple(Picture("noto", name, name, "train") for name in ("disc", "square", "bar"))
    rgba = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
    rgba[0, :, 8:24, 8:24] = torch.tensor([200, 30, 30, 255], dtype=torch.uint8)[:, None, None]
    rgba[1, :, 4:28, 4:28] = torch.tensor([20, 90, 200, 255], dtype=torch.uint8)[:, None, None]
    rgba[2, :, 12:20, :] = torch.tensor([0, 0, 0, 128], dtype=torch.uint8)[:, None, None]
    return Artwork(pictures, rgba)


def test_alphas_and_velocity_equal_diffusers(toy_pipe: StableDiffusionXLPipeline) -> None:
    scheduler = DDPMScheduler.from_config(toy_pipe.scheduler.config)
    alphas = scheduler_alphas(toy_pipe)
    torch.testing.assert_close(alphas, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert alphas[-1] == 0
    latents, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 999])
    _, velocity = noise_and_target(latents, noise, alphas, timesteps)
    expected = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=1e-4)


def test_denoiser_conditions_the_unet_as_the_pipeline_does(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    prompt = "a red apple, noto style"
    tokens = toy_pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    seen = []
    toy_pipe.unet.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        toy_pipe(prompt, num_inference_steps=1, guidance_scale=4.0, output_type="latent")
        keep, known = torch.tensor([0, 1]), torch.ones(2)
        Denoiser(toy_pipe)(torch.randn(2, 4, 8, 8), 999, tokens.expand(2, -1), keep, known)
    (_, pipeline), (_, trained) = seen
    # Row 0 is the unconditional one in both: the pipeline zeroes the empty negative prompt.
    torch.testing.assert_close(
        trained["encoder_hidden_states"], pipeline["encoder_hidden_states"], atol=1e-6, rtol=1e-5
    )
    for key in ("text_embeds", "time_ids"):
        torch.testing.assert_close(
            trained["added_cond_kwargs"][key],
            pipeline["added_cond_kwargs"][key],
            atol=1e-6,
            rtol=1e-5,
        )


def test_text_encoders_learn_from_known_words_alone(toy_pipe: StableDiffusionXLPipeline) -> None:
    denoiser = Denoiser(toy_pipe)
    tokens = caption_tokens(
        [Picture("noto", "owl", "owl", "train")], toy_pipe.tokenizer, made_up_caption, variants=2
    )[0]
    latents, keep = torch.randn(2, 4, 8, 8), torch.ones(2)

    def learn(known: float) -> list[bool]:
        denoiser.zero_grad()
        denoiser(latents, 500, tokens, keep, torch.full((2,), known)).sum().backward()
        encoders = (denoiser.text_encoder, denoiser.text_encoder_2)
        return [any(p.grad is not None and p.grad.any() for p in e.parameters()) for e in encoders]

    assert learn(1.0) == [True, True]
    assert learn(0.0) == [False, False]
    assert any(p.grad is not None and p.grad.any() for p in denoiser.unet.parameters())


def test_modified_pictures_come_with_their_words(
    artwork: Artwork, toy_pipe: StableDiffusionXLPipeline
) -> None:
    torch.manual_seed(0)
    batches = Batches(artwork, toy_pipe.vae, toy_pipe)
    drawn = batches.draw(400, progress=1.0)
    texts = toy_pipe.tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True)
    negative = [i for i, text in enumerate(texts) if "negative" in text]
    assert 1 <= len(negative) <= 20
    expected = encode(toy_pipe.vae, MODIFIERS["negative"](artwork.rgba)).bfloat16().float()
    for row in negative:
        assert (drawn.latents[row] == expected).flatten(1).all(dim=1).any()
        assert drawn.known[row] == 1
    assert 20 <= int((drawn.known == 0).sum()) <= 45


def test_normalised_latents_have_unit_variance_and_decode_to_the_same(artwork: Artwork) -> None:
    updater = vae_updater(TOY, torch.device("cpu"), Clock(0.0))
    assert len(list(train_vae(updater, artwork, batch=4, compiled=False))) == 1
    vae: AutoencoderKL = updater.average
    images = on_white(artwork.rgba)
    before = psnr(vae, images)
    normalise_latents(vae, artwork)
    latents = encode(vae, images)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    assert psnr(vae, images) == pytest.approx(before, abs=1e-2)


def test_toy_run_learns_and_draws(artwork: Artwork, toy_pipe: StableDiffusionXLPipeline) -> None:
    batches = Batches(artwork, toy_pipe.vae, toy_pipe)
    updater = base_updater(toy_pipe, torch.device("cpu"), Clock(1.0), dropout=0.1)
    run = train_base(updater, batches, scheduler_alphas(toy_pipe), batch=16, compiled=False)
    losses = [float(loss) for loss in islice(run, 40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert any(m.p == 0.1 for m in updater.module.unet.modules() if isinstance(m, nn.Dropout))
    drawn = averaged_pipeline(toy_pipe, updater.average)("disc, noto style", num_inference_steps=2)
    assert drawn.images[0].size == (32, 32)


def linear_updater(seed: int) -> Updater[nn.Linear]:
    torch.manual_seed(seed)
    return Updater(nn.Linear(3, 2), Clock(60.0), peak=1e-2, decay=0.9, warmup=1)


def test_updater_equals_adamw_and_a_plain_average() -> None:
    updater = linear_updater(0)
    plain = copy.deepcopy(updater.module)
    average = plain.weight.detach().clone()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(5):
        x = torch.randn(4, 3)
        updater.update(updater.module(x).square().mean())
        plain(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * plain.weight.detach()
    # The clock has hardly moved, so the rate is almost the peak.
    torch.testing.assert_close(updater.module.weight, plain.weight, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(updater.average.weight, average, atol=1e-6, rtol=1e-4)


def test_a_restored_updater_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    kept = linear_updater(0)
    inputs = torch.randn(6, 4, 3)
    for x in inputs[:3]:
        kept.update(kept.module(x).square().mean())
    kept.save(tmp_path / "state.safetensors")
    restored = linear_updater(1)
    restored.restore(tmp_path / "state.safetensors")
    assert restored.step == 3
    assert seconds_of(tmp_path / "state.safetensors") == pytest.approx(0, abs=60)
    for x in inputs[3:]:
        for updater in (kept, restored):
            updater.update(updater.module(x).square().mean())
    torch.testing.assert_close(restored.module.weight, kept.module.weight, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(restored.average.weight, kept.average.weight, atol=1e-6, rtol=1e-4)


def test_an_updater_goes_on_without_the_optimizers_moments(tmp_path: Path) -> None:
    kept = linear_updater(0)
    kept.update(kept.module(torch.ones(1, 3)).square().mean())
    kept.save(tmp_path / "whole.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        metadata = file.metadata()
        names = [name for name in file.keys() if not name.startswith("exp_avg")]  # noqa: SIM118
        small = {name: file.get_tensor(name) for name in names}
    save_file(small, tmp_path / "small.safetensors", metadata=metadata)
    restored = linear_updater(1)
    restored.restore(tmp_path / "small.safetensors")
    assert torch.equal(restored.module.weight, kept.module.weight)
    restored.update(restored.module(torch.ones(1, 3)).square().mean())
    assert restored.step == 2


def test_captions_are_tokens_of_their_picture(toy_pipe: StableDiffusionXLPipeline) -> None:
    pictures = [Picture("noto", "red apple", "red-apple", "train")]
    tokens = caption_tokens(pictures, toy_pipe.tokenizer, caption, variants=40)
    assert tokens.shape == (1, 40, TOY.prompt_tokens)
    named = ["apple" in text for text in toy_pipe.tokenizer.batch_decode(tokens[0])]
    assert 30 <= sum(named) < 40
    assert (empty_tokens(toy_pipe.tokenizer)[1:] == toy_pipe.tokenizer.eos_token_id).all()


def test_shifting_keeps_white_white_and_range() -> None:
    torch.manual_seed(0)
    shifted = shift_and_scale(torch.ones(8, 3, 32, 32), shift=0.2, smallest=0.5)
    torch.testing.assert_close(shifted, torch.ones_like(shifted))
    noise = shift_and_scale(torch.rand(8, 3, 32, 32) * 2 - 1, shift=0.2, smallest=0.5)
    assert noise.amin() >= -1
    assert noise.amax() <= 1


def test_alpha_is_composited_over_white(artwork: Artwork) -> None:
    images = on_white(artwork.rgba)
    assert images[2, 0, 16, 16] == pytest.approx(1 - 2 * 128 / 255, abs=1e-3)
    assert images[0, 0, 0, 0] == 1


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.5, 0.505), (1.0, 0.01)])
def test_learning_rate_follows_the_clock(progress: float, share: float) -> None:
    assert learning_rate(2e-3, 10_000, progress) == pytest.approx(2e-3 * share)
    assert learning_rate(2e-3, 0, progress, warmup=100) == pytest.approx(2e-5 * share)


def test_pack_is_read_back(tmp_path: Path) -> None:
    picture = Picture("noto", "red apple", "red-apple", "train")
    Image.new("RGBA", (128, 128), (10, 20, 30, 40)).save(tmp_path / "one.png")
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.write(tmp_path / "one.png", picture.file)
    artwork = Artwork.load(tmp_path / "pack.zip", [picture], torch.device("cpu"), 128)
    assert artwork.rgba[0, :, 0, 0].tolist() == [10, 20, 30, 40]
