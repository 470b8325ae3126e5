"""The images of one run's concepts, as one dataset; a run without concepts has one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from training.config import Concept, Config
from training.data import Dataset, read_folder
from training.errors import DataError
from training.masked import with_masks


def read_data(config: Config) -> Dataset:
    """Return the images that the settings name.

    Raises `DataError` with the faults of all folders.
    """
    concepts = config.concepts or (Concept(config.data, config.instance_prompt),)
    parts, faults = [], []
    for concept in concepts:
        try:
            parts.append(_read(concept, config))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return joined(parts)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Return the datasets as one; each word and prompt is kept once."""
    return Dataset(
        folders=tuple(folder for part in parts for folder in part.folders),
        images=tuple(image for part in parts for image in part.images),
        remarks=tuple(remark for part in parts for remark in part.remarks),
        words=_once(word for part in parts for word in part.words),
        prompts=_once(prompt for part in parts for prompt in part.prompts),
    )


def _read(concept: Concept, config: Config) -> Dataset:
    folder = read_folder(
        Path(concept.data),
        instance_prompt=concept.instance_prompt,
        skip_unreadable=config.skip_unreadable,
    )
    found = with_masks(folder, config.loss_mask)
    words = (concept.trigger,) if concept.trigger else found.words
    return Dataset(
        found.folders, found.images * concept.repeats, found.remarks, words, found.prompts
    )


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
