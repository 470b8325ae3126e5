"""Adapters on the Hugging Face hub; the only file here that knows its client."""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shira_diffusion import cards, formats, modelspec
from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.formats import container
from shira_diffusion.formats.names import COMPONENTS

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PROMPT = re.compile(r"^- (.+)$", re.MULTILINE)
# The hub's own identifiers; any other licence is "other" with its name.
_LICENSES = re.compile(
    r"apache-2\.0|mit|(creativeml-|bigscience-)?openrail(\+\+|-m)?|cc0-1\.0|bsd-3-clause"
    r"|cc-by(-nc)?(-nd|-sa)?-[234]\.0|[al]?gpl-3\.0|unlicense|wtfpl"
)


@dataclass(frozen=True)
class Package:
    """What goes to the hub: the adapter's file, its card, and what else there is.

    That is a picture, and the embeddings of the word that it taught the text encoders.
    """

    file: Path
    card: str
    thumbnail: bytes | None
    embeddings: Path | None

    def write(self, folder: Path) -> None:
        """Lay it out in `folder` as the repository has it."""
        shutil.copyfile(self.file, folder / cards.FILE)
        if self.embeddings is not None:
            shutil.copyfile(self.embeddings, folder / cards.EMBEDDINGS)
        (folder / "README.md").write_text(self.card, encoding="utf-8")
        if self.thumbnail is not None:
            (folder / "thumbnail.png").write_bytes(self.thumbnail)


def pack(path: Path, repo_id: str) -> Package:
    """The adapter at `path` for the hub: a file, or a folder as the trainer leaves it.

    What lies beside the trainer's file is used: a thumbnail, a word's embeddings, and a card, which
    gets the hub's header and way of loading. Raises `FormatError` for a broken file and
    `SettingError` for an impossible `repo_id`.
    """
    if not is_repository(repo_id):
        raise SettingError(f"{repo_id!r} is no repository on the hub; name it 'user/adapter'")
    file = path / cards.FILE if path.is_dir() else path
    info = formats.load(file).info
    folder = file.parent if file.name == cards.FILE else None
    thumbnail = _picture(file, folder)
    written = folder / "card.md" if folder else None
    if written is not None and written.is_file():
        body = cards.renewed(written.read_text(encoding="utf-8"), info, hub_id=repo_id)
    else:
        picture = "thumbnail.png" if thumbnail else ""
        body = cards.write_card(info, hub_id=repo_id, thumbnail=picture)
    prompts = _PROMPT.findall(body.partition("## Prompts to try")[2].partition("\n## ")[0])
    header = _header(info, prompts[0] if prompts and thumbnail else "")
    words = folder / cards.EMBEDDINGS if folder else None
    embeddings = words if words is not None and words.is_file() else None
    return Package(file, f"---\n{header}\n---\n\n{body}", thumbnail, embeddings)


def is_repository(name: str) -> bool:
    """Whether a name can be a repository's: `user/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def fetch_base(repo_id: str) -> Path:
    """The weights of a base on the hub, from the cache or downloaded; raises `ShiraError`."""
    wanted = [f"{part}/*.safetensors" for part in COMPONENTS]
    with _translated(repo_id):
        return Path(_client().snapshot_download(repo_id, allow_patterns=["*.json", *wanted]))


def push(package: Package, repo_id: str, *, private: bool = False, api: Any = None) -> str:
    """Upload a package in one commit, making the repository where there is none; returns its URL.

    `api` is a `huggingface_hub.HfApi`, by default one with the token of `hf auth login`. Raises
    `ShiraError` where the hub refuses or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        package.write(Path(folder))
        with _translated(repo_id):
            client = api or _client().HfApi(library_name="shira_diffusion")
            client.create_repo(repo_id, private=private, exist_ok=True)
            commit = client.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Upload adapter"
            )
            return str(commit.repo_url)


def _picture(file: Path, folder: Path | None) -> bytes | None:
    """The thumbnail beside the adapter, or else the one inside its file."""
    beside = folder / "thumbnail.png" if folder else None
    if beside is not None and beside.is_file():
        return beside.read_bytes()
    return modelspec.picture(container.read_header(file).metadata)


def _header(info: AdapterInfo, prompt: str) -> str:
    """The YAML by which the hub lists, filters and shows the adapter."""
    sparse = info.method in cards.SPARSE
    tags = ["text-to-image", "diffusers", info.architecture.removesuffix("-v1-base")]
    tags += ["shira", "sparse-adapter"] if sparse else ["lora", "template:sd-lora"]
    license_id = info.license.lower()
    known = _LICENSES.fullmatch(license_id) is not None
    picture = {"text": prompt, "output": {"url": "thumbnail.png"}}
    # Names of folders on somebody's machine mean nothing to the hub.
    base = info.base_model if is_repository(info.base_model) else None
    data = _client().ModelCardData(
        library_name="shira_diffusion" if sparse else "diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, *info.tags],
        base_model=base,
        base_model_relation="adapter" if base else None,
        license=(license_id if known else "other") if info.license else None,
        license_name=None if known or not info.license else info.license,
        instance_prompt=", ".join(info.trigger_words) or None,
        widget=[picture] if prompt else None,
    )
    return str(data.to_yaml())


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ShiraError(
            "the hub needs huggingface_hub, which is not installed; "
            "pip install 'shira-diffusion[hub]'"
        ) from error
    return huggingface_hub


@contextmanager
def _translated(repo_id: str) -> Iterator[None]:
    """The errors of the hub's client, and of the network under it, as ours."""
    _client()
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ShiraError(f"{repo_id}: nobody is logged in; run `hf auth login`") from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise ShiraError(
            f"{repo_id}: the hub refuses it ({error}); check the name, and the token of "
            "`hf auth login`"
        ) from error
    except Exception as error:
        # Which network library is under the client changes with its versions.
        raise ShiraError(
            f"{repo_id}: the hub cannot be reached ({error}); check the network and HF_ENDPOINT, "
            "and that HF_HUB_OFFLINE is not set"
        ) from error
