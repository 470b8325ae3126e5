"""Every way in which files name SDXL's layers, as the one that adapters use.

Ours are diffusers' names with the component before them: `unet.mid_block.attentions.0.proj_in`.
"""

from __future__ import annotations

from shira_diffusion.components import canonical_name
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import kohya, sgm

PEFT = "base_model.model."
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
# How names begin in a UNet that stands alone.
UNET_PARTS = (
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "time_embedding.",
    "add_embedding.",
)


def canonical(stored: str) -> str:
    """Our name for a layer or weight that a file calls `stored`.

    Understood are diffusers' names, kohya's flat ones, those of SDXL's original code, and PEFT's
    prefix before any of them. Raises `FormatError` for a name that tells no component.
    """
    bare = stored.removeprefix(PEFT)
    if bare.startswith("lora_"):
        return canonical_name(kohya.layer_path(bare))
    for prefix in (sgm.UNET, sgm.UNET.removeprefix("model.")):
        if bare.startswith(prefix):
            return f"unet.{sgm.from_sgm(bare.removeprefix(prefix))}"
    if bare.startswith((sgm.CLIP, sgm.OPEN_CLIP)):
        found = list(sgm.from_checkpoint(bare))
        if len(found) == 1:
            return canonical_name(found[0])
    component, _, path = bare.partition(".")
    if component in COMPONENTS and path:
        path = path.removeprefix(PEFT)
        return canonical_name(f"{component}.{sgm.from_sgm(path) if component == 'unet' else path}")
    if bare.startswith(UNET_PARTS):
        return f"unet.{bare}"
    raise FormatError(f"the layer {stored!r} names no component (unet, text_encoder)")


def canonical_or_bare(stored: str) -> str:
    """As `canonical`, but a name that tells no component stays, as a lone module's."""
    bare = stored.removeprefix(PEFT)
    try:
        return canonical(bare)
    except FormatError:
        return bare
