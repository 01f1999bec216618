"""The edits that a front end offers, by name, and the one that a request chooses."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from headedit.errors import HeadEditError, suggest
from headedit.serving.saved_edit import SavedEdit, strength_of
from headedit.serving.vllm.chosen import Chosen, Ids, as_request, choose
from headedit.serving.vllm.errors import EditNotFound, RequestRefused

NAME, STRENGTH = "headedit", "headedit_strength"
"""What a request gives in ``extra_args``, or over HTTP in ``vllm_xargs``."""


class Registry:
    """The edits that a front end offers.

    Args:
        edits: those that are served from the start.

    Fields:
        ids: the numbers that vLLM knows edits by.
        model: the model of transformers without weights, once edits were loaded while the engine ran.
    """

    model: nn.Module | None = None

    def __init__(self, edits: list[SavedEdit]) -> None:
        self.ids = Ids()
        self._edits = {edit.name: edit for edit in edits}

    def names(self) -> list[str]:
        """The names that a request can choose."""
        return sorted(self._edits)

    def get(self, name: str) -> SavedEdit:
        """The edit of a name.

        Raises:
            EditNotFound: there is none.
        """
        found = self._edits.get(name)
        if found is None:
            raise EditNotFound(f"No edit is called '{name:.200}' here.{suggest(name, self._edits)}")
        return found

    def put(self, edit: SavedEdit) -> SavedEdit | None:
        """Offers an edit in place of the one that had its name, which is returned; None where there was none."""
        before = self._edits.get(edit.name)
        self._edits[edit.name] = edit
        return before

    def offers(self, digest: str) -> bool:
        """Whether an edit of this content is offered under any name."""
        return any(edit.digest == digest for edit in self._edits.values())

    def request(self, edit: SavedEdit) -> Any:
        """A request for an edit as it was saved, by which vLLM's workers are told of it."""
        return as_request(choose(edit, edit.strength), edit.path, self.ids)

    def remove(self, name: str) -> SavedEdit:
        """Stops offering an edit; requests that chose it go on."""
        edit = self.get(name)
        del self._edits[name]
        return edit

    def choice(self, extra: Mapping[str, Any] | None, model: str | None) -> tuple[SavedEdit, Chosen] | None:
        """The edit that a request chooses, and its values; None for the model without edits.

        Args:
            extra: the request's extra arguments.
            model: the name of an edit that was given as that of the model.

        Raises:
            EditNotFound: there is no such edit.
            RequestRefused: two are chosen, or the strength is not a number.
        """
        given = {key: value for key, value in (extra or {}).items() if str(key).startswith(NAME)}
        unknown = next((key for key in given if key not in (NAME, STRENGTH)), None)
        if unknown is not None:
            raise RequestRefused(f"'{unknown:.80}' is not an argument.{suggest(unknown, (NAME, STRENGTH))}")
        name = given.get(NAME)
        if name is not None and not (isinstance(name, str) and name):
            raise RequestRefused(f"{NAME}: found {name!r:.80}, expected the name of an edit.")
        if name is not None and model is not None and name != model:
            raise RequestRefused(f"The model is the edit '{model}', and {NAME} is '{name}'. Choose one of them.")
        name = model if name is None else name
        if name is None:
            if given.get(STRENGTH) is not None:
                raise RequestRefused(f"{STRENGTH} is given, and no edit. Give {NAME}, the name of one.")
            return None
        edit = self.get(name)
        try:
            return edit, choose(edit, strength_of(given.get(STRENGTH), edit.strength))
        except HeadEditError as error:
            raise RequestRefused(f"{NAME}_{error}") from None
