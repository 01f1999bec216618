"""What a handle offers to take its edits elsewhere: folders, the hub, the model's own weights, PEFT."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from headedit.edits.handle import HeadEdits


def _handle(travelling: "Travelling") -> "HeadEdits":
    from headedit.edits.handle import HeadEdits

    assert isinstance(travelling, HeadEdits)
    return travelling


class Travelling:
    """The methods of ``HeadEdits`` that save, publish, merge and convert."""

    def save_pretrained(
        self,
        save_directory: "str | PathLike[str]",
        *,
        hardened: bool = False,
        card: bool = True,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes ``headedit_config.json`` and ``headedit.safetensors`` into a folder, atomically, and a model card.

        Args:
            save_directory: the folder, made if it is not there.
            hardened: store only the open heads, as they act; edits that were hardened are always stored so.
            card: write the card, ``README.md``, unless one stands there that headedit did not write.
            metrics: names and values that the card tells.

        Raises:
            HeadEditError: the folder cannot be made or written, or a metric is not a number.
        """
        from headedit.edits.files.storage import save

        save(_handle(self), save_directory, hardened=hardened, card=card, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        hardened: bool = False,
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Uploads the edits and their card to the hub, and returns the commit's address; see ``hub.push_to_hub``."""
        from headedit.edits.files.hub import push_to_hub

        return push_to_hub(
            _handle(self),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            hardened=hardened,
            metrics=metrics,
        )

    def merge_adapter(self, safe_merge: bool = False) -> None:
        """Folds the edits, as they act in eval mode, into the model's weights, in place; the hooks rest until unmerged.

        Raises:
            HeadEditError: the edits are merged or detached, a weight is quantized, offloaded, shared or of no
                projection, an offset has no bias to go to, or with ``safe_merge`` a result is not finite; nothing is
                changed then.
        """
        from headedit.edits.merge.merge import merge

        merge(_handle(self), safe_merge)

    def unmerge_adapter(self) -> None:
        """Puts the original weights and config back, bit for bit.

        Raises:
            HeadEditError: the edits are not merged.
        """
        from headedit.edits.merge.merge import unmerge

        unmerge(_handle(self))

    def merge_and_unload(self, safe_merge: bool = False) -> nn.Module:
        """Merges the edits and detaches them.

        Returns:
            The model, plain; or, where its projections can have no bias and its spec names a type that computes the
            same (Qwen2, Mistral: Llama), a model of that type.

        Raises:
            HeadEditError: as for ``merge_adapter``; the edits stay attached then.
        """
        from headedit.edits.merge.merge import merge_and_unload

        return merge_and_unload(_handle(self), safe_merge)

    def to_peft(self, directory: "str | PathLike[str]") -> None:
        """Writes the edits as a PEFT adapter: (IA)³, or LoRA where there is an offset.

        Raises:
            HeadEditError: PEFT is not installed, or cannot hold an edit of these sites.
        """
        from headedit.edits.merge.peft import to_peft

        to_peft(_handle(self), directory)
