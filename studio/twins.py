"""Which LoRA is the twin of which sparse adapter: told by what their trainings recorded.

A name alone proves nothing: anybody's `robot-lora` may lie beside a `robot` of one's own.
"""

from shira_diffusion import AdapterInfo
from shira_diffusion.cards import SPARSE

TWIN_ENDING = "-lora"
LORA = "lora"


def objection(sparse: AdapterInfo, other: AdapterInfo) -> str:
    """Why `other` is not the LoRA twin of `sparse`, in words that follow its name; "" if it is.

    Twins learned the same pictures by the same words on the same base.
    """
    if sparse.method not in SPARSE or other.method != LORA:
        return "is not a LoRA beside a SHiRA adapter"
    if "converted" in other.training:
        return "was converted from another adapter, not trained"
    if not _pictures(sparse)[0] or _pictures(sparse) != _pictures(other):
        return "did not learn from the same pictures, by what their files say"
    if sparse.base_fingerprint != other.base_fingerprint:
        return "was made for another base"
    if set(sparse.trigger_words) != set(other.trigger_words):
        return "has other trigger words"
    return ""


def _pictures(info: AdapterInfo) -> tuple[str, str]:
    # The studio names a training's pictures after the adapter that they make.
    return info.training.get("data", "").removesuffix(TWIN_ENDING), info.training.get("images", "")
