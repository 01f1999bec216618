"""Saved edits on the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headedit.edits.adapter_set import AdapterSet
from headedit.edits.files.card import CARD_FILE, is_ours
from headedit.edits.files.storage import save
from headedit.errors import HeadEditError


def push_to_hub(
    edits: AdapterSet,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    hardened: bool = False,
    metrics: Mapping[str, float] | None = None,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Uploads the edits and their model card to a repository of the hub, which is made if it does not exist.

    ``headedit.load(model, repo_id)`` loads them. A card that headedit did not write is left unchanged.

    Args:
        edits: the adapter set, attached or detached.
        repo_id: the id of the repository, ``name`` or ``owner/name``.
        private: whether a new repository is private; by default as the owner's account says.
        token: a token of the hub; by default the one that ``hf auth login`` stored.
        revision: a branch to upload to, made if it does not exist; by default the main one.
        commit_message: by default "Upload edits by headedit".
        hardened: upload only the open heads; see ``HeadEdits.save_pretrained``.
        metrics: names and values for the card.
        card: fields of the card's front matter, such as ``license`` and ``datasets``.

    Returns:
        The address of the commit.

    Raises:
        HeadEditError: a vector or gate is not finite, the hub refuses or cannot be reached, a metric is not a number,
            or a field is not one of a card.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save(edits, folder, hardened=hardened, metrics=metrics, repo_id=repo_id, card=True if card is None else card)
        api = HfApi(token=token)
        try:
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            info = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or "Upload edits by headedit",
                ignore_patterns=[CARD_FILE] if _has_own_card(api, name, revision) else None,
            )
        except Exception as error:  # the hub client raises its own, the transport's and the system's errors
            raise HeadEditError(
                f"{repo_id}: the edits could not be uploaded ({type(error).__name__}: {error}). Log in with 'hf auth "
                "login' or give a token that may write, and check the id."
            ) from None
    return str(info.commit_url)


def _has_own_card(api: Any, repo_id: str, revision: str | None) -> bool:
    if not api.file_exists(repo_id, CARD_FILE, revision=revision):
        return False
    return not is_ours(Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)))
