"""A plan on the toy base that trains, draws and judges within seconds."""

from pathlib import Path

from PIL import Image

HEAD = """
name = "toy"
base = "{base}"
presets = {{ style = "{preset}", concept = "{preset}" }}
training_seeds = [0]

[sampling]
steps = 2
seeds = [0, 1]
batch = 3

[questions]
things = ["dog"]
styles = ["noto"]
unrelated = [["house", "fluent"]]

[[styles]]
name = "high-contrast"
word = "ink"
data = "{data}/high-contrast"

[[concepts]]
name = "robot"
data = "{data}/robot"

[recipes.shira]
method = "shira"
density = 0.1

[recipes.lora]
method = "lora"
"""


def write_plan(folder: Path, base: Path, more: str = "") -> Path:
    """Write preset, images and plan below `folder` and return the plan's file."""
    preset = folder / "preset.toml"
    preset.write_text("steps = 2\nbatch = 1\nlr = 1e-2\n")
    for name, word in (("high-contrast", "a castle, ink style"), ("robot", "robot")):
        images = folder / name
        images.mkdir(exist_ok=True)
        for number, colour in enumerate(("red", "blue")):
            Image.new("RGB", (32, 32), colour).save(images / f"{number}.png")
            (images / f"{number}.txt").write_text(word)
    plan = folder / "plan.toml"
    plan.write_text(HEAD.format(base=base, preset=preset, data=folder) + more)
    return plan
