"""A dataset's images with the masks that the settings ask for."""

import dataclasses
from collections.abc import Sequence

from training.data import CaptionedImage, Dataset
from training.errors import DataError, bullets
from training.images import UNREADABLE
from training.loss_masks import LABEL, find_mask, read_mask

_REMEDIES = {
    "masklabel": f"put a NAME{LABEL}.png beside NAME.png, white where it counts",
    "alpha": "save them as PNG or WebP with transparent parts",
}


def with_masks(dataset: Dataset, kind: str) -> Dataset:
    """Return the dataset with masks of the `kind`, and remarks on images that have none.

    Raises `DataError` for masks that cannot be read, and where no image has one.
    """
    if kind == "off":
        return dataset
    images = [
        dataclasses.replace(image, mask=find_mask(image.path, kind)) for image in dataset.images
    ]
    if faults := _unreadable(images):
        raise DataError(bullets("These masks cannot be read (replace or remove them):", faults))
    bare = sorted({image.path.name for image in images if image.mask is None})
    if len(bare) == dataset.files:
        names = ", ".join(str(folder) for folder in dataset.folders)
        raise DataError(
            f"loss_mask = {kind}: no image in {names} has a mask. To use masks {_REMEDIES[kind]}; "
            "else set loss_mask=off."
        )
    remark = f"without a mask, so that all of them counts ({_REMEDIES[kind]}): {', '.join(bare)}"
    return dataclasses.replace(
        dataset,
        images=tuple(images),
        remarks=(*dataset.remarks, *([remark] if bare else [])),
    )


def _unreadable(images: Sequence[CaptionedImage]) -> list[str]:
    faults = {}
    for image in images:
        try:
            if image.mask:
                read_mask(image.path, image.mask, image.size)
        except UNREADABLE as error:
            faults[image.mask] = f"{image.mask.name if image.mask else ''} ({error})"
    return list(faults.values())
