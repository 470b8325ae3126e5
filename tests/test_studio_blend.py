"""Blends: made as the library fuses, measured pair by pair, tried as drafts, kept as adapters."""

import asyncio
import dataclasses
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import gradio as gr
import pytest
import torch
from PIL import Image
from studio_toys import load_base, make_studio, recipe

from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher, SparseDelta, fuse, metrics
from shira_diffusion.errors import SettingError, ShiraError, UnknownAdapterError
from studio.blends import blend as blends
from studio.blends import runner, trial
from studio.blends.account import Account
from studio.blends.blend import Blend, Meeting, Thinning, blended, load_parts
from studio.blends.drafts import KEPT, Draft, Drafts
from studio.blends.heatmap import MEASURES, block_of, heat_map, layer_of
from studio.blends.interference import Measuring, Pair, measured
from studio.following import wait
from studio.grids.grid import fill
from studio.jobs import Job, State
from studio.library import AdapterLibrary
from studio.loaded import LoadedAdapters
from studio.service import Studio
from studio.tabs.blending import UNCHANGED, BlendHandlers, Form, Made
from studio.tabs.heatplot import heat_plot
from studio.tabs.trying import TrialHandlers

PARTS = {"ink": 1.0, "robot": 0.5}
MARKUP = "<b>|bold|</b>"


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    studio = make_studio(toy_base, tmp_path_factory.mktemp("blend"))
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def adapters(studio: Studio) -> dict[str, Adapter]:
    return load_parts(studio.library, Blend(PARTS))


def account(blend: Blend, made: Adapter, adapters: dict[str, Adapter]) -> Account:
    pairs = [item for item in measured(adapters) if isinstance(item, Pair)]
    return Account.of(blend, made, adapters, pairs)


def keep_draft(studio: Studio, blend: Blend, adapters: dict[str, Adapter]) -> Draft:
    made = blended(blend, adapters, name="blend")
    return studio.drafts.keep(made, account(blend, made, adapters))


def require_equal(made: Adapter, expected: Adapter) -> None:
    """The same change, once `expected` is rounded to fp16."""
    assert made.deltas.keys() == expected.deltas.keys()
    for name, delta in expected.deltas.items():
        assert torch.equal(made.deltas[name].to_dense(), delta.to_dense().half()), name
        assert bool((made.deltas[name].values != 0).any())


def test_each_method_is_the_librarys(adapters: dict[str, Adapter]) -> None:
    parts = [(adapters["ink"], 1.0), (adapters["robot"], 0.5)]
    pruned = [(fuse.prune(adapter, 0.3), strength) for adapter, strength in parts]
    generator = torch.Generator().manual_seed(5)
    dropped = [(fuse.dare(adapter, 0.7, generator), strength) for adapter, strength in parts]
    largest, random = Thinning.LARGEST, Thinning.DARE
    for given, expected in [
        (Blend(PARTS), fuse.weighted_sum(parts, name="x")),
        (Blend(PARTS, Meeting.MEAN), fuse.mean(parts, name="x")),
        (Blend(PARTS, Meeting.STRONGEST), fuse.strongest(parts, name="x")),
        (Blend(PARTS, Meeting.TIES, largest, keep=0.3), fuse.ties(parts, keep=0.3, name="x")),
        (Blend(PARTS, thinning=largest, keep=0.3), fuse.weighted_sum(pruned, name="x")),
        (Blend(PARTS, Meeting.TIES, random, keep=0.3, seed=5),
         fuse.ties(dropped, keep=1.0, name="x")),
        (Blend(PARTS, result_keep=0.2), fuse.prune(fuse.weighted_sum(parts, name="x"), 0.2)),
    ]:  # fmt: skip
        made = blended(given, adapters, name="x")
        require_equal(made, expected)
        assert made.info.trigger_words == ("ink style", "sks robot")
        assert made.info.training["blend"] == given.words
        assert "ink x 1, robot x 0.5" in made.info.training["fused"]
        assert "blend" in made.info.tags


def test_the_order_of_the_parts_does_not_matter(adapters: dict[str, Adapter]) -> None:
    turned = Blend(dict(reversed(PARTS.items())), thinning=Thinning.DARE, keep=0.5)
    straight = Blend(PARTS, thinning=Thinning.DARE, keep=0.5)
    require_equal(blended(turned, adapters, name="x"), blended(straight, adapters, name="x"))


def test_large_values_stay_fp32() -> None:
    big = Adapter(
        {"unet.w": SparseDelta.from_dense(torch.tensor([[6e4, 0.0]]))}, AdapterInfo("big")
    )
    made = blended(Blend({"a": 1.0, "b": 1.0}), {"a": big, "b": big}, name="x")
    assert made.deltas["unet.w"].values.tolist() == [120000.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parts": {"ink": 1.0}}, "2 to 6"),
        ({"parts": dict.fromkeys("abcdefg", 1.0)}, "2 to 6"),
        ({"parts": {"ink": 3.0, "robot": float("nan")}}, "'ink'.*'robot'"),
        ({"parts": PARTS, "keep": 0.0}, "of each"),
        ({"parts": PARTS, "result_keep": 1.1}, "of the result"),
        ({"parts": PARTS, "seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Blend(**settings)


def test_what_is_too_large_is_told_with_the_remedy(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blends, "MAX_ENTRIES", 10)
    with pytest.raises(SettingError, match=r"ink-lora \(LoRA\) changes every entry.*SHiRA"):
        load_parts(studio.library, Blend({"ink-lora": 1.0, "robot": 1.0}))
    with pytest.raises(SettingError, match="Blend fewer"):
        load_parts(studio.library, Blend(PARTS))


def test_pairs_have_the_measures_of_the_library(studio: Studio) -> None:
    three = load_parts(studio.library, Blend({**PARTS, "lonely": 1.0}))
    items = list(measured(three))
    pairs = [item for item in items if isinstance(item, Pair)]
    assert [(pair.a, pair.b) for pair in pairs] == [
        ("ink", "robot"), ("ink", "lonely"), ("robot", "lonely"),
    ]  # fmt: skip
    steps = [item for item in items if isinstance(item, Measuring)]
    assert steps[-1].done == steps[-1].total == len(steps) == 3 * len(three["ink"].deltas)
    for pair in pairs:
        a, b = three[pair.a], three[pair.b]
        assert pair.overlap == pytest.approx(metrics.overlap(a, b))
        assert pair.awom == pytest.approx(metrics.awom(a, b))
        assert pair.awor == pytest.approx(metrics.awor(a, b))
        # Random masks meet about as often as chance has it, and half of the time in opposition.
        assert pair.overlap == pytest.approx(pair.chance, rel=0.2)
        assert pair.opposed == pytest.approx(0.5, abs=0.1)
        assert 0 < pair.relative_awom < 1


def test_verdicts_follow_the_numbers() -> None:
    def pair(shared: int, opposed: int) -> Pair:
        met = metrics.Meeting("unet.w", shared, opposed, 100, awom=1.0, awor=0.5, bound=2.0)
        return Pair("a", "b", (met,), 100, 0.0)

    assert "share no entry" in pair(0, 0).verdict
    assert "hardly meet" in pair(9, 9).verdict
    assert "pull apart" in pair(50, 40).verdict
    assert "mostly agree" in pair(50, 5).verdict


@pytest.mark.parametrize(
    ("weight", "block", "layer"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.3.attn1.to_q.weight",
         "down 1.0", "self q"),
        ("unet.up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0.weight",
         "up 0.2", "cross out"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight",
         "mid", "feed-forward"),
        ("unet.down_blocks.0.resnets.1.conv1.weight", "down 0.1", "convolution"),
        ("unet.conv_in.weight", "other", "convolution"),
        ("text_encoder_2.text_model.encoder.layers.11.self_attn.v_proj.weight",
         "text 2 · 11", "self v"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", "text 1 · 0", "feed-forward"),
        ("something", "other", "other"),
    ],
)  # fmt: skip
def test_weights_find_their_place_in_the_map(weight: str, block: str, layer: str) -> None:
    assert (block_of(weight), layer_of(weight)) == (block, layer)


def test_the_map_gathers_weights_by_block_and_layer() -> None:
    def meeting(weight: str, shared: int, opposed: int = 0) -> metrics.Meeting:
        return metrics.Meeting(weight, shared, opposed, 10, awom=float(shared), awor=0.5, bound=1.0)

    stem = "unet.{}.attentions.0.transformer_blocks.{}.attn1.to_{}.weight"
    met = [
        meeting(stem.format("up_blocks.0", 0, "k"), 4),
        meeting(stem.format("down_blocks.10", 0, "k"), 1),
        meeting(stem.format("down_blocks.2", 0, "q"), 2, 1),
        meeting(stem.format("down_blocks.2", 1, "q"), 6, 3),
    ]
    shown = heat_map(met, "Overlap")
    assert shown.rows == ("self q", "self k")
    assert shown.columns == ("down 2.0", "down 10.0", "up 0.0")
    assert shown.values == ((0.4, None, None), (None, 0.1, 0.4))
    assert (shown.lowest, shown.highest) == (0.1, 0.4)
    assert heat_map(met, "Opposed").values[0][0] == 0.5
    assert heat_map(met, "AWOM").values[0][0] == 4.0
    assert all(heat_map([], name).values == () for name in MEASURES)


def test_a_trial_draws_base_sum_and_blend(studio: Studio, adapters: dict[str, Adapter]) -> None:
    draft = keep_draft(studio, Blend(PARTS, Meeting.MEAN), adapters)
    plan = trial.plan(studio.library, recipe(), PARTS, draft.name, seeds=2)
    assert plan.rows == ("Seed 7", "Seed 8")
    name = studio.grids.begin(plan, studio.library)
    grid = fill(studio.engine, studio.grids.open(name), report=lambda _: None)
    base, plain_sum, made = (Image.open(cell.picture).tobytes() for cell in grid.cells[:3])
    assert base == studio.engine.generate(recipe()).image.tobytes()
    assert plain_sum == studio.engine.generate(recipe(mix=PARTS)).image.tobytes()
    assert made not in (base, plain_sum)


def test_a_sum_at_strength_one_draws_what_the_mix_draws(
    studio: Studio, adapters: dict[str, Adapter]
) -> None:
    exact = dataclasses.replace(fuse.weighted_sum([(adapters["ink"], 1.0)], name="x"))
    draft = studio.drafts.keep(exact, account(Blend(PARTS), exact, adapters))
    alone = studio.engine.generate(recipe(mix={"ink": 1.0})).image.tobytes()
    assert studio.engine.generate(recipe(mix={draft.name: 1.0})).image.tobytes() == alone


def test_drafts_are_listed_nowhere_and_outlive_a_restart(
    studio: Studio, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    drafts = Drafts(tmp_path, studio.library)
    told = account(Blend(PARTS), adapters["ink"], adapters)
    made = [drafts.keep(adapters["ink"], told) for _ in range(KEPT + 2)]
    assert len(list(tmp_path.iterdir())) == KEPT
    assert not any(entry.name.startswith("blend/") for entry in studio.library.rescan())
    with pytest.raises(SettingError, match="press Blend again"):
        drafts.find(made[0].name)
    assert [studio.library.knows(one.name) for one in made] == [False] * 2 + [True] * KEPT
    again = AdapterLibrary(studio.library.folder)
    with pytest.raises(UnknownAdapterError):
        again.find(made[-1].name)
    found = Drafts(tmp_path, again)
    assert found.find(made[-1].name).entry.info.name == "ink"
    assert found.account(made[-1]) == told


def test_a_draft_is_there_as_a_whole_or_not_at_all(
    studio: Studio, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    drafts = Drafts(tmp_path / "drafts", studio.library)
    told = account(Blend(PARTS), adapters["ink"], adapters)
    with pytest.raises(FileNotFoundError):
        drafts.keep(adapters["ink"], told, embeddings=tmp_path / "gone")
    assert not list((tmp_path / "drafts").iterdir())


@pytest.mark.parametrize("name", ["", "blend/", "blend/..", "../ink", "blend/../../ink", "ink"])
def test_a_draft_is_found_by_its_id_alone(studio: Studio, name: str) -> None:
    with pytest.raises(SettingError, match="press Blend again"):
        studio.drafts.find(name)


def test_a_kept_blend_is_an_adapter_with_its_history(
    studio: Studio, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    made = blended(Blend(PARTS, Meeting.TIES), adapters, name="blend")
    draft = studio.drafts.keep(made, account(Blend(PARTS, Meeting.TIES), made, adapters))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (900, 900), "teal").save(picture)
    name = studio.drafts.publish(draft, f"My {MARKUP} blend", "ink style,  robot ", picture)
    entry = studio.library.find(name)
    assert (entry.title, entry.info.trigger_words) == (f"My {MARKUP} blend", ("ink style", "robot"))
    assert entry.info.training["fused"] == "TIES 1 of ink x 1, robot x 0.5"
    assert entry.folder.parent == studio.library.folder
    require_equal(studio.library.load(entry), made)
    with Image.open(entry.thumbnail) as thumbnail:
        assert max(thumbnail.size) <= 512
    assert "TIES 1 of ink x 1, robot x 0.5" in entry.card()
    assert studio.drafts.publish(draft, f"My {MARKUP} blend", "", None) == f"{name}-2"
    assert not studio.library.find(f"{name}-2").thumbnail.exists()
    with pytest.raises(SettingError, match="title is empty"):
        studio.drafts.publish(draft, " \t", "", None)
    assert not list(studio.library.folder.glob(".*partial*"))


def test_a_draft_is_read_once(
    studio: Studio,
    adapters: dict[str, Adapter],
    toy_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = keep_draft(studio, Blend(PARTS), adapters)
    read: list[str] = []
    load = studio.library.load
    monkeypatch.setattr(studio.library, "load", lambda one: read.append(one.name) or load(one))
    held = LoadedAdapters(AdapterSwitcher(load_base(toy_base)), studio.library)
    for _ in range(3):
        held.bring({draft.name: draft.entry})
        held.bring({})
    assert read == [draft.name]


def test_a_damaged_draft_is_listed_nowhere(studio: Studio, adapters: dict[str, Adapter]) -> None:
    draft = keep_draft(studio, Blend(PARTS), adapters)
    file = draft.entry.folder / "adapter.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(ShiraError, match="cannot be used"):
        studio.library.load(studio.library.find(draft.name))
    assert draft.name not in {entry.name for entry in studio.library.entries}
    with pytest.raises(ShiraError, match="cannot be used"):
        studio.library.find(draft.name)


def test_a_full_disk_is_told_when_a_blend_is_kept(
    studio: Studio, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    draft = keep_draft(studio, Blend(PARTS), adapters)
    monkeypatch.setattr(Adapter, "save", fail)
    with pytest.raises(gr.Error, match="No space left"):
        BlendHandlers(studio).keep(draft.name, "", "Full", "")
    assert not list(studio.library.folder.glob(".*partial*"))


def test_adapters_of_other_models_are_told_apart(adapters: dict[str, Adapter]) -> None:
    other = Adapter(
        {name: SparseDelta.from_dense(torch.ones(3, 3)) for name in adapters["ink"].deltas},
        AdapterInfo("other"),
    )
    with pytest.raises(ShiraError, match="different"):
        blended(Blend({"ink": 1.0, "other": 1.0}), {**adapters, "other": other}, name="x")


def test_the_plot_says_what_the_map_holds(adapters: dict[str, Adapter]) -> None:
    shown = heat_map(list(metrics.meetings(adapters["ink"], adapters["robot"])), "Overlap")
    figure = ElementTree.fromstring(heat_plot(shown, "Overlap", MARKUP))
    titles = [node.text for node in figure.iter("title")]
    assert titles == [
        f"{block}, {layer}: {value * 100:.1f} %"
        for layer, values in zip(shown.rows, shown.values, strict=True)
        for block, value in zip(shown.columns, values, strict=True)
        if value is not None
    ]
    assert not list(figure.iter("b"))
    told = figure.find("svg").get("aria-label")
    assert f"Overlap in % of {MARKUP}" in told
    assert f"from {shown.lowest * 100:.1f} % (" in told
    assert f"to {shown.highest * 100:.1f} % (" in told
    shares = [node.get("style") for node in figure.iter("rect") if node.get("class") == "cell"]
    assert {"--heat:0.000", "--heat:1.000"} <= set(shares)


def test_a_map_of_one_value_or_none_can_be_drawn() -> None:
    met = metrics.Meeting("unet.mid_block.attentions.0.to_q.weight", 1, 0, 4, 1.0, 0.5, 2.0)
    one = ElementTree.fromstring(heat_plot(heat_map([met], "AWOR"), "AWOR", "a and b"))
    assert "0.5 everywhere" in one.find("svg").get("aria-label")
    assert [node.get("style") for node in one.iter("rect")] == ["--heat:1.000"]
    none = ElementTree.fromstring(heat_plot(heat_map([], "AWOM"), "AWOM", "a and b"))
    assert "no weight" in none.find("svg").get("aria-label")


def finished(studio: Studio, blend: Blend) -> Job:
    job = studio.bench.submit(runner.KIND, blend.plain())
    return wait(studio.bench, job.id, 60).job


def test_a_blend_is_a_job_and_its_draft_tells_all(
    studio: Studio, adapters: dict[str, Adapter]
) -> None:
    blend = Blend(PARTS, Meeting.TIES, Thinning.LARGEST, keep=0.3, seed=4)
    with studio.engine._lock:  # who draws does not hold it up
        job = finished(studio, blend)
    assert job.state == State.DONE
    draft = studio.drafts.find(job.results[0])
    made = blended(blend, adapters, name="blend")
    require_equal(studio.library.load(draft.entry), made)
    assert studio.drafts.account(draft) == account(blend, made, adapters)
    form = Form.read(*BlendHandlers(studio).open_page(job.id)[:-1])
    assert form.names["value"] == ["ink", "robot"]
    assert [one.get("value") for one in form.strengths[:3]] == [1.0, 0.5, None]
    assert (form.meeting, form.thinning, form.keep["value"], form.seed) == (
        "ties", "largest", 30.0, 4,
    )  # fmt: skip


def shown_of(studio: Studio, job: str) -> Made:
    async def last() -> tuple[object, ...]:
        async for values in BlendHandlers(studio).follow(job, "Overlap"):
            seen = values
        return seen

    return Made(*asyncio.run(last())[: len(Made._fields)])


def test_a_page_that_comes_back_shows_the_blend_or_why_there_is_none(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shown_of(studio, finished(studio, Blend(PARTS)).id)
    assert "Ink and Robot" in made.report
    assert (made.title, made.triggers) == ("Ink + Robot", "ink style, sks robot")
    assert "<figure" in BlendHandlers(studio).heat(made.draft, 0, "AWOM")
    with pytest.raises(gr.Error, match="press Blend again"):
        BlendHandlers(studio).heat("blend/../../ink", 0, "AWOM")
    monkeypatch.setattr(blends, "MAX_ENTRIES", 10)
    assert "Blend fewer" in shown_of(studio, finished(studio, Blend(PARTS)).id).report
    assert shown_of(studio, "no job") == UNCHANGED
    assert BlendHandlers(studio).open_page("no job") == BlendHandlers(studio).open_page("")


def test_a_blend_ends_at_a_stop(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(parts: dict[str, Adapter]) -> Iterator[Measuring | Pair]:
        for item in measured(parts):
            yield item
            begun.set()
            goes_on.wait(30)

    monkeypatch.setattr(runner, "measured", slowly)
    job = studio.bench.submit(runner.KIND, Blend(PARTS).plain())
    assert begun.wait(30)
    BlendHandlers(studio).stop(job.id)
    goes_on.set()
    ended = wait(studio.bench, job.id, 30).job
    assert (ended.state, ended.results) == (State.CANCELLED, ())
    assert "Stopped" in shown_of(studio, job.id).report


def test_a_trial_comes_back_unless_it_is_of_another_blend(
    studio: Studio, adapters: dict[str, Adapter]
) -> None:
    trials = TrialHandlers(studio)
    one, two = (keep_draft(studio, Blend(PARTS), adapters) for _ in range(2))
    asked = recipe(prompt="a castle", steps=3, guidance=4.0)
    plan = trial.plan(studio.library, asked, PARTS, one.name, seeds=2)
    name = studio.grids.begin(plan, studio.library)
    form = trials.open_page(name)
    assert (form.prompt, form.seeds, form.steps, form.guidance) == ("a castle", 2, 3, 4.0)
    assert trials.belong(name, one.name)[2] == gr.skip()
    assert trials.belong(name, two.name)[2] == ""
    assert trials.open_page("../ink").prompt == gr.skip()
