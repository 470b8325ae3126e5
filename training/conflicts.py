"""Settings that are each right and rule one another out."""

from collections.abc import Mapping
from typing import Any

from training.config import FIELDS, SPARSE

# transformers 5.23 loses the magnitudes of a DoRA that is loaded into its encoders.
_IN_TEXT_ENCODERS = ("shira", "lora")


def conflicts(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the settings together; those not `given` have their defaults."""
    values = {key: given.get(key, field.default) for key, field in FIELDS.items()}
    method = values["method"]
    faults = []
    if method in SPARSE and values["weight_decay"]:
        faults.append(
            f"weight_decay must be 0 with {method}: it would pull at the weights, not at their "
            "change"
        )
    if method == "shira-dora" and not isinstance(values["rank"], int):
        faults.append(
            "rank must be a number with shira-dora, a high one such as rank=64: the file has "
            "density's entries whatever it is"
        )
    if values["optimizer"] == "prodigy" and values["lr"] < 0.1:
        faults.append(
            f"lr = {values['lr']:g} is a factor on the rate that prodigy finds itself: set lr=1"
        )
    return faults + _of_texts(values)


def _of_texts(values: Mapping[str, Any]) -> list[str]:
    """Look at what trains the text encoders and a new token."""
    method, faults = values["method"], []
    if values["train_text_encoders"] and method not in _IN_TEXT_ENCODERS:
        faults.append(
            f"train_text_encoders does not go with {method}: set it to false, or method to one of "
            f"{', '.join(_IN_TEXT_ENCODERS)}"
        )
    if values["cuda_graphs"]:
        faults += [
            f"cuda_graphs does not go with {key}: captions are then read anew in each step, which "
            "no graph can hold; remove one of the two"
            for key in ("train_text_encoders", "new_token")
            if values[key]
        ]
    if values["new_token"] and values["weight_decay"]:
        faults.append("weight_decay must be 0 with new_token: it would pull at the embeddings")
    if values["token_init"] and not values["new_token"]:
        faults.append("token_init is set, but no new_token: name it, such as new_token=<ink>")
    return faults
