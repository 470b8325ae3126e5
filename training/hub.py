"""Sends a finished adapter to the Hugging Face hub; the only file here that knows the hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData

from shira_diffusion import AdapterInfo
from training.config import SPARSE


def upload(
    folder: Path, info: AdapterInfo, repo: str, *, private: bool, endpoint: str | None = None
) -> str:
    """Send the files of an adapter's folder to `repo`, as one commit, and return its address.

    The repository is made when there is none; its front page is the card. Whatever the hub has
    against it is raised as it comes.
    """
    api = HfApi(endpoint=endpoint)
    address = api.create_repo(repo, private=private, exist_ok=True)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    files["README.md"] = _front_page(info, (folder / "card.md").read_text(encoding="utf-8"))
    api.create_commit(
        repo,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=f"{info.title}: adapter, card and thumbnail",
    )
    return str(address)


def _front_page(info: AdapterInfo, card: str) -> bytes:
    """Return the card under the words that the hub finds models by."""
    tags = ["text-to-image", "stable-diffusion-xl", "shira" if info.method in SPARSE else "lora"]
    # A base of this machine alone is nothing that the hub knows.
    base = info.base_model if "/" in info.base_model else None
    data = ModelCardData(
        tags=[*tags, *info.tags], library_name="diffusers", base_model=base, license=None
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card}".encode()
