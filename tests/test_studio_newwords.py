"""New words: spoken with their adapters as diffusers would load them, and gone without a trace."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from studio_toys import load_base, make_adapter, open_toy, recipe

from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher
from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.errors import FormatError, MismatchError, SettingError
from shira_diffusion.formats import container, metadata
from shira_diffusion.formats.embeddings import KEYS, NewWord, read_word, write_word
from shira_diffusion.words import TOKENIZERS, Lexicon
from studio.blends import runner
from studio.blends.blend import Blend
from studio.engine import Engine
from studio.errors import BrokenAdapterError, GridError
from studio.following import wait
from studio.grids.plan import Plan, Spot, require_unchanged, sealed
from studio.library import ADAPTER_FILE
from studio.service import Studio
from studio.tabs.library_view import leaf
from training.methods.tokens import add_word, remove_word

INK, DOG = "<ink>", "<Dog>"
PROMPT = "a castle, <ink> style"


def vectors(base: Path, count: int, seed: int) -> dict[str, torch.Tensor]:
    pipe, generator = load_base(base), torch.Generator().manual_seed(seed)
    widths = {part: getattr(pipe, part).get_input_embeddings().weight.shape[1] for part in KEYS}
    return {part: torch.randn(count, width, generator=generator) for part, width in widths.items()}


def put_word(folder: Path, word: str, rows: dict[str, torch.Tensor]) -> None:
    write_word(folder / EMBEDDINGS, rows, AdapterInfo(folder.name, training={"new_token": word}))


def make(base: Path, folder: Path, word: str, *, count: int, seed: int) -> None:
    info = AdapterInfo(folder.name, trigger_words=(f"{word} style",), training={"new_token": word})
    make_adapter(base, folder, seed=seed, info=info)
    put_word(folder, word, vectors(base, count, seed))


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("words")
    make(toy_base, folder / "adapters" / "inky", INK, count=2, seed=1)
    make(toy_base, folder / "adapters" / "doggy", DOG, count=1, seed=2)
    make(toy_base, folder / "adapters" / "again", INK.upper(), count=1, seed=3)
    make_adapter(toy_base, folder / "adapters" / "plain", seed=4, info=AdapterInfo("plain"))
    studio = open_toy(toy_base, folder / "adapters", folder / "out")
    yield studio
    studio.close()


@pytest.fixture
def engine(studio: Studio) -> Engine:
    return studio.engine


def pixels(engine: Engine, **changes: object) -> bytes:
    return engine.generate(recipe(**{"prompt": PROMPT, **changes})).image.tobytes()


@contextmanager
def silent(folder: Path) -> Iterator[None]:
    """Take an adapter's embeddings away for the block: its word is then none that anybody knows."""
    away = folder.with_name(f".{folder.name}-word")
    (folder / EMBEDDINGS).rename(away)
    try:
        yield
    finally:
        away.rename(folder / EMBEDDINGS)


def with_diffusers(base: Path, studio: Studio, names: list[str], prompt: str) -> bytes:
    """A picture as the adapters' cards say that diffusers draws it."""
    pipe, made = load_base(base), recipe(prompt=prompt)
    pipe.set_progress_bar_config(disable=True)
    switcher = AdapterSwitcher(pipe)
    # In order of their words: a token's number does not matter, but for a pooled state by argmax.
    for name in names:
        folder = studio.library.find(name).folder
        info = Adapter.load(folder / ADAPTER_FILE).info
        stored = container.read(folder / EMBEDDINGS).tensors
        for part, tokenizer in TOKENIZERS.items():
            pipe.load_textual_inversion(
                stored[KEYS[part]], token=info.training["new_token"],
                text_encoder=getattr(pipe, part), tokenizer=getattr(pipe, tokenizer),
            )  # fmt: skip
        switcher.add(name, Adapter.load(folder / ADAPTER_FILE))
    with switcher.using(dict.fromkeys(names, 1.0)):
        output = pipe(
            prompt=made.prompt, num_inference_steps=made.steps, guidance_scale=made.guidance,
            width=made.width, height=made.height,
            generator=torch.Generator("cpu").manual_seed(made.seed),
        )  # fmt: skip
    return output.images[0].tobytes()


def test_a_word_is_spoken_as_diffusers_loads_it(
    toy_base: Path, studio: Studio, engine: Engine
) -> None:
    made = pixels(engine, mix={"inky": 1.0})
    assert made == with_diffusers(toy_base, studio, ["inky"], PROMPT)
    with silent(studio.library.find("inky").folder):
        studio.library.rescan()
        assert made != pixels(engine, mix={"inky": 1.0})
    studio.library.rescan()
    both = f"{DOG}, {INK} style"
    together = pixels(engine, mix={"inky": 1.0, "doggy": 1.0}, prompt=both)
    assert together == with_diffusers(toy_base, studio, ["doggy", "inky"], both)
    assert together == pixels(engine, mix={"doggy": 1.0, "inky": 1.0}, prompt=both)
    negative = pixels(engine, mix={"inky": 1.0}, prompt="a castle", negative_prompt=INK)
    assert negative != pixels(engine, mix={"inky": 1.0}, prompt="a castle")


def test_a_word_comes_off_without_a_trace(engine: Engine) -> None:
    pipe = engine._pipe
    own = [pipe.tokenizer, pipe.tokenizer_2]
    sizes = [len(one) for one in own]
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    before = [{key: one.clone() for key, one in part.state_dict().items()} for part in encoders]
    alone = pixels(engine)
    pixels(engine, mix={"inky": 1.0})

    def fail(_: object) -> None:
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        engine.generate(recipe(prompt=PROMPT, mix={"inky": 1.0}), on_step=fail)
    assert [pipe.tokenizer, pipe.tokenizer_2] == own
    assert [len(one) for one in own] == sizes
    assert INK not in pipe.tokenizer.get_vocab()
    for part, state in zip(encoders, before, strict=True):
        assert state.keys() == part.state_dict().keys()
        assert all(torch.equal(one, part.state_dict()[key]) for key, one in state.items())
        table = part.get_input_embeddings()
        assert not table._forward_hooks
        assert not table._forward_pre_hooks
    assert pixels(engine) == alone
    # At strength 0 an adapter is off, and so is its word.
    assert pixels(engine, mix={"inky": 0.0}) == alone


def test_two_at_once_each_have_their_own_words(engine: Engine) -> None:
    mixes = [{"inky": 1.0}, {}, {"doggy": 1.0}, {"plain": 1.0}]
    alone = [pixels(engine, mix=mix) for mix in mixes]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda mix: pixels(engine, mix=mix), mixes * 2)) == alone * 2


def test_a_word_twice_is_refused_with_both_names(engine: Engine) -> None:
    with pytest.raises(SettingError, match=r"'again'.*'<INK>'.*'inky'.*another new_token"):
        engine.check(recipe(mix={"inky": 1.0, "again": 1.0}))
    engine.check(recipe(mix={"inky": 1.0, "again": 0.0}))


def test_embeddings_that_changed_are_read_again(
    toy_base: Path, studio: Studio, engine: Engine
) -> None:
    folder = studio.library.find("doggy").folder
    asked = {"mix": {"doggy": 1.0}, "prompt": DOG}
    first, kept = pixels(engine, **asked), (folder / EMBEDDINGS).read_bytes()
    put_word(folder, DOG, vectors(toy_base, 3, 9))
    second = pixels(engine, **asked)
    assert second != first
    (folder / EMBEDDINGS).write_bytes(kept)
    assert pixels(engine, **asked) == first


def test_records_and_grids_know_the_word(toy_base: Path, studio: Studio, engine: Engine) -> None:
    folder = studio.library.find("doggy").folder
    mix = {"doggy": 1.0}
    kept = (folder / EMBEDDINGS).read_bytes()
    (use,) = engine.generate(recipe(prompt=DOG, mix=mix)).record.adapters
    assert use.word_sha256 == hashlib.sha256(kept).hexdigest()
    (off,) = engine.generate(recipe(prompt=DOG, mix={"doggy": 0.0})).record.adapters
    assert off.word_sha256 == ""
    spot = Spot(recipe(prompt=DOG, mix=mix))
    plan = sealed(Plan("line", "", ("", ""), ("",), ("",), (spot,)), studio.library)
    require_unchanged(plan, studio.library)
    for change in (
        lambda: (folder / EMBEDDINGS).unlink(),
        lambda: put_word(folder, DOG, vectors(toy_base, 1, 8)),
    ):
        change()
        with pytest.raises(GridError, match="has changed"):
            require_unchanged(plan, studio.library)
        (changed,) = engine.generate(recipe(prompt=DOG, mix=mix)).record.adapters
        assert changed != use
    (folder / EMBEDDINGS).write_bytes(kept)
    require_unchanged(plan, studio.library)


@pytest.fixture
def lexicon(toy_base: Path) -> Lexicon:
    return Lexicon(load_base(toy_base))


@pytest.mark.parametrize("word", ["castle", "Castle", "a"])
def test_a_word_that_the_base_knows_is_refused(lexicon: Lexicon, toy_base: Path, word: str) -> None:
    with pytest.raises(SettingError, match=r"'ada'.*knows"):
        lexicon.check([NewWord(word, vectors(toy_base, 1, 0), "ada")])


def test_tokens_of_several_embeddings_must_not_meet(lexicon: Lexicon, toy_base: Path) -> None:
    first = NewWord("<x>", vectors(toy_base, 2, 0), "one")
    second = NewWord("<x>_1", vectors(toy_base, 1, 0), "two")
    with pytest.raises(SettingError, match=r"'two'.*'<x>_1'.*'one'"):
        lexicon.check([first, second])


def test_a_word_for_another_base_is_refused(lexicon: Lexicon) -> None:
    rows = {part: torch.ones(1, 7) for part in KEYS}
    with pytest.raises(MismatchError, match="7 wide"), lexicon.using([NewWord("<x>", rows, "a")]):
        pass


def test_sdxl_pools_at_the_end_with_new_words_too(toy_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_base, tmp_path / "as-published")
    for part in TOKENIZERS:
        config = folder / part / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 2}))
    pipe = load_base(folder)

    def pooled(of: StableDiffusionXLPipeline, prompt: str) -> torch.Tensor:
        return of.encode_prompt(prompt, do_classifier_free_guidance=False)[2]

    assert torch.equal(pooled(pipe, "a castle"), pooled(load_base(toy_base), "a castle"))
    assert pipe.text_encoder_2.config.eos_token_id == 2
    for spoken in (Lexicon(pipe).using([NewWord("<x>", vectors(toy_base, 1, 0))]), taught(pipe)):
        with spoken:
            ends = [pooled(pipe, f"<x> {rest}") for rest in ("a castle", "a red apple")]
            assert not torch.allclose(*ends)


@contextmanager
def taught(pipe: StableDiffusionXLPipeline) -> Iterator[None]:
    """As the trainer has a word in its base."""
    add_word(pipe, "<x>", 1, "", 0)
    yield
    remove_word(pipe, "<x>", 1)


ROWS = {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 8)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_l": ROWS["clip_l"]}, "no clip_g"),
        ({**ROWS, "clip_l": torch.ones(1, 8)}, "different numbers"),
        ({**ROWS, "clip_l": torch.full((2, 8), float("nan"))}, "NaN"),
        ({**ROWS, "clip_l": torch.ones(2, 8, dtype=torch.int32)}, "rows of floats"),
        ({**ROWS, "clip_l": torch.ones(2, 2, 8)}, "rows of floats"),
        ({**ROWS, "clip_l": torch.ones(0, 8)}, "rows of floats"),
        ({**ROWS, "clip_g": torch.ones(76, 8)}, "rows of floats"),
    ],
)
def test_files_that_hold_no_word(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    container.write(tmp_path / EMBEDDINGS, tensors, {})
    with pytest.raises(FormatError, match=words):
        read_word(tmp_path / EMBEDDINGS, "<x>")


def test_a_word_comes_back_from_its_file(tmp_path: Path) -> None:
    rows = {"text_encoder": torch.rand(3, 8).T.contiguous().T, "text_encoder_2": torch.rand(3, 5)}
    write_word(tmp_path / "x", rows, AdapterInfo("x", training={"new_token": "<x>"}))
    found = read_word(tmp_path / "x", owner="ada")
    assert (found.word, found.owner, found.tokens) == ("<x>", "ada", ["<x>", "<x>_1", "<x>_2"])
    assert all(torch.equal(found.vectors[part], one) for part, one in rows.items())


@pytest.mark.parametrize("word", ["", "two words", "x" * 65])
def test_a_file_has_to_say_its_word(tmp_path: Path, word: str) -> None:
    info = AdapterInfo("x", training={"new_token": word})
    container.write(tmp_path / EMBEDDINGS, ROWS, metadata.encode(info))
    with pytest.raises(FormatError, match="new_token"):
        read_word(tmp_path / EMBEDDINGS)
    assert read_word(tmp_path / EMBEDDINGS, "<x>").tokens == ["<x>", "<x>_1"]


def test_damaged_embeddings_are_told_without_their_folder(
    toy_base: Path, studio: Studio, engine: Engine
) -> None:
    folder = studio.library.folder / "spoilt"
    make(toy_base, folder, "<spoilt>", count=1, seed=5)
    (folder / EMBEDDINGS).write_bytes(b"\x80\x04\x95pickle")
    studio.library.rescan()
    with pytest.raises(BrokenAdapterError, match=r"'spoilt'.*not a whole.*Without") as caught:
        engine.check(recipe(mix={"spoilt": 1.0}))
    assert str(folder) not in str(caught.value)
    assert "cannot be used" in leaf(studio.library.find("spoilt"))
    # At strength 0 it is not spoken, so it keeps nobody from a picture.
    assert pixels(engine, mix={"spoilt": 0.0}) == pixels(engine)


def test_a_picture_outlives_a_word_that_breaks_meanwhile(
    toy_base: Path, studio: Studio, engine: Engine
) -> None:
    folder = studio.library.folder / "brief"
    make(toy_base, folder, "<brief>", count=1, seed=6)
    studio.library.rescan()
    asked = recipe(prompt="<brief>", mix={"brief": 1.0})
    whole = engine.generate(asked).image.tobytes()
    broken = engine.generate(asked, on_step=lambda _: (folder / EMBEDDINGS).write_bytes(b"no"))
    assert broken.image.tobytes() == whole
    assert broken.remarks == ()


def test_words_count_as_known_and_by_their_embeddings(engine: Engine) -> None:
    assert engine.remarks(recipe(prompt=PROMPT, mix={"inky": 1.0})) == ()
    half = engine._counter.model_max_length // 2
    # Two embeddings each, beside a start and an end.
    assert engine.remarks(recipe(prompt=f"{INK} " * (half - 1), mix={"inky": 1.0})) == ()
    (remark,) = engine.remarks(recipe(prompt=f"{INK} " * half, mix={"inky": 1.0}))
    assert "the last 2 of this prompt" in remark


def test_a_blend_takes_over_the_word_of_one_part(studio: Studio, engine: Engine) -> None:
    def draft(*names: str) -> str:
        blend = Blend(dict.fromkeys(names, 1.0))
        job = studio.bench.submit(runner.KIND, blend.plain())
        return wait(studio.bench, job.id, 60).job.results[0]

    one, two = draft("inky", "plain"), draft("inky", "doggy")
    spoken = pixels(engine, mix={one: 1.0})
    with silent(studio.drafts.find(one).entry.folder):
        assert spoken != pixels(engine, mix={one: 1.0})
    assert spoken == pixels(engine, mix={one: 1.0})
    assert studio.drafts.find(one).entry.info.training["new_token"] == INK
    assert not (studio.drafts.find(two).entry.folder / EMBEDDINGS).exists()
    name = studio.drafts.publish(studio.drafts.find(one), "Inky blend", "", None)
    kept = studio.library.find(name)
    assert "&lt;ink&gt;" in leaf(kept)
    assert read_word(kept.folder / EMBEDDINGS).word == INK
