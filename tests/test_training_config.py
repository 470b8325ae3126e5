"""Presets and overrides: what is read, what wins, and that every fault is named at once."""

import dataclasses
import json
from pathlib import Path

import pytest

from training.config import CONCEPT_FIELDS, FIELDS, METHODS, Config
from training.errors import ConfigError
from training.settings import PRESETS, load_config
from training.written import describe_settings, differences, to_json


def preset(folder: Path, text: str) -> Path:
    path = folder / "preset.toml"
    path.write_text(text)
    return path


def test_defaults_are_resolved(tmp_path: Path) -> None:
    config = load_config(preset(tmp_path, 'data = "pictures/ink"'))
    assert (config.name, config.title, config.run) == ("ink", "ink", str(Path("runs") / "ink"))
    assert dataclasses.replace(config, name="", title="", run="") == Config(data="pictures/ink")


def test_lora_twin_gets_its_own_name(tmp_path: Path) -> None:
    config = load_config(preset(tmp_path, 'data = "ink"\nmethod = "lora"'))
    assert config.name == "ink-lora"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("steps=7", "steps", 7),
        ("lr=2e-4", "lr", 2e-4),
        ("lr=1", "lr", 1.0),
        ("overwrite=true", "overwrite", True),
        ("name=a=b", "name", "a=b"),
        ("instance_prompt=a cat, ink style", "instance_prompt", "a cat, ink style"),
        ("name=7", "name", "7"),
        ('targets=["attention", "conv"]', "targets", ("attention", "conv")),
        ("targets=conv", "targets", ("conv",)),
        ("prior_prompts=a cat, ink", "prior_prompts", ("a cat, ink",)),
        ("rank=8", "rank", 8),
        ("rank=match", "rank", "match"),
    ],
)
def test_override_is_read_as_the_settings_type(
    tmp_path: Path, override: str, key: str, value: object
) -> None:
    config = load_config(preset(tmp_path, 'data = "ink"'), [override])
    found = getattr(config, key)
    assert (found, type(found)) == (value, type(value))


def test_method_table_wins_over_the_top_and_overrides_over_both(tmp_path: Path) -> None:
    path = preset(tmp_path, 'data = "ink"\nlr = 0.1\nsteps = 5\n[lora]\nlr = 0.2\nsteps = 6\n')
    assert load_config(path).lr == 0.1
    config = load_config(path, ["method=lora", "steps=9"])
    assert (config.lr, config.steps) == (0.2, 9)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    path = preset(tmp_path, 'stepps = 4\ndensity = 2.0\nbatch = "four"\n[lora]\nrank = "high"\n')
    overrides = [
        "maks=rand",
        "mask=rnad",
        "steps=0",
        "lr=nan",
        "novalue",
        "name=a/b",
        "seed=2026-11-23",
    ]
    overrides += ["weight_decay=0.1"]
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    for part in (
        "no setting stepps (did you mean steps?)",
        "density = 2.0",
        'batch = "four" is not a whole number',
        'rank = "high"',
        "no setting maks (did you mean mask?)",
        'mask = "rnad" is not one of struct, rand, wm, sara, grad, snip (did you mean rand?)',
        "steps = 0 is not >= 1",
        "lr = NaN",
        "--set novalue: write it as key=value",
        'name = "a/b" is not a plain folder name',
        'seed = "2026-11-23" is not a whole number',
        "data is missing",
        "weight_decay must be 0 with shira",
    ):
        assert part in message
    assert len(message.splitlines()) == 14


@pytest.mark.parametrize("data", ["pictures/_ink", ".ink", "/", "a:b"])
@pytest.mark.parametrize("method", ["shira", "lora"])
def test_data_folder_that_cannot_name_an_adapter_needs_a_name(
    tmp_path: Path, data: str, method: str
) -> None:
    path = preset(tmp_path, "")
    overrides = [f"data={data}", f"method={method}"]
    with pytest.raises(ConfigError, match="cannot be the adapter's; set name="):
        load_config(path, overrides)
    assert load_config(path, [*overrides, "name=ink"]).name == "ink"
    with pytest.raises(ConfigError, match="not a plain folder name"):
        load_config(path, [*overrides, "name=_ink"])


def test_true_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps = true is not a whole number"):
        load_config(preset(tmp_path, 'data = "ink"\nsteps = true'))


def test_broken_toml_and_missing_presets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(preset(tmp_path, "data = "))
    with pytest.raises(ConfigError, match=r"did you mean emoji-style\?"):
        load_config("emoji-stile")


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["shira", "lora"])
def test_shipped_presets_are_valid(path: Path, method: str) -> None:
    config = load_config(path.stem, ["data=pictures", f"method={method}"])
    assert config.method == method


def test_resolved_settings_survive_json_and_differences_are_named(tmp_path: Path) -> None:
    config = load_config(preset(tmp_path, 'data = "ink"'))
    stored = json.loads(to_json(config))
    assert differences(stored, config) == []
    changed = dataclasses.replace(config, lr=0.5, density=0.9, sample_every=3)
    assert differences(stored, changed) == [
        "density was 0.05, now 0.9",
        "lr was 0.001, now 0.5",
    ]
    del stored["budget"]
    assert differences(stored, config) == []
    changed = dataclasses.replace(config, budget="global")
    assert differences(stored, changed) == ["budget was 'layer', now 'global'"]


def test_help_names_every_setting() -> None:
    text = describe_settings()
    assert all(f"  {field.name} = " in text for field in dataclasses.fields(Config))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_but_shira_stands_in_the_name(tmp_path: Path, method: str) -> None:
    config = load_config(preset(tmp_path, 'data = "ink"'), [f"method={method}", "rank=8"])
    assert config.name == ("ink" if method == "shira" else f"ink-{method}")


def test_shira_dora_asks_for_its_rank_and_bears_no_decay(tmp_path: Path) -> None:
    path = preset(tmp_path, 'data = "ink"\nmethod = "shira-dora"\nweight_decay = 0.1')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "rank must be a number with shira-dora" in str(caught.value)
    assert "weight_decay must be 0 with shira-dora" in str(caught.value)


def test_the_guide_names_every_setting_and_preset() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    presets = [path.stem for path in PRESETS.glob("*.toml")]
    missing = [word for word in (*FIELDS, *CONCEPT_FIELDS, *presets) if f"`{word}`" not in guide]
    assert not missing
