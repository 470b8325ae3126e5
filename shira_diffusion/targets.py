"""Which weights of a UNet and its text encoders are meant by "attention" and the like."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from shira_diffusion.errors import SettingError, nearest

# What can be trained, by group; "attention" is what the paper adapts. A UNet's names, then CLIP's.
TARGETS = {
    "attention": re.compile(
        r".*\.attn\d\.(to_q|to_k|to_v|to_out\.0)\.weight"
        r"|.*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)\.weight"
    ),
    "feed_forward": re.compile(r".*\.ff\.net\.(0\.proj|2)\.weight|.*\.mlp\.fc[12]\.weight"),
    "projection": re.compile(r".*\.(proj_in|proj_out)\.weight"),
    "conv": re.compile(
        r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut)\.weight"
        r"|.*\.(downsamplers|upsamplers)\.\d+\.conv\.weight"
    ),
}

# Of a UNet's weights the stage, of a text encoder's the layer.
_BLOCK = re.compile(r"(down_blocks|up_blocks|layers)\.\d+|mid_block")


def chosen(names: Collection[str], target: str) -> list[str]:
    """Those of `names` in the group `target`; `SettingError` for a group that there is not."""
    pattern = TARGETS.get(target)
    if pattern is None:
        known = nearest(target, TARGETS, most=len(TARGETS))
        raise SettingError(f"there is no group of weights {target!r}; {known}")
    return [name for name in names if pattern.fullmatch(name)]


def within(names: Collection[str], blocks: Iterable[str]) -> set[str]:
    """Those of `names` in one of the `blocks`, such as "mid_block" or "up_blocks.1".

    Raises `SettingError` for a block that holds none of them.
    """
    found: set[str] = set()
    for block in blocks:
        inside = {name for name in names if name.startswith(f"{block}.")}
        if not inside:
            there = {place.group() for name in names if (place := _BLOCK.match(name))}
            known = nearest(block, there, most=len(there))
            raise SettingError(f"no weight of the targets lies in the block {block!r}; {known}")
        found |= inside
    return found


def chosen_of_all(names: Collection[str], targets: Iterable[str]) -> set[str]:
    """Those of `names` in one of the groups `targets`."""
    return {name for target in targets for name in chosen(names, target)}
