"""How ``vllm serve`` is started with edits: the command and its environment."""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence

from headedit.errors import HeadEditError
from headedit.serving.folders import VARIABLE, named_edits

SLOTS_VARIABLE = "HEADEDIT_SLOTS"
_SERVER = "vllm.entrypoints.openai.api_server"  # what `vllm serve` runs; it needs no package of the name vllm
_PLUGIN = "headedit"  # the name of our entry point
_PLUGINS = "VLLM_PLUGINS"
_UPDATES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def command(model: str, options: Sequence[str]) -> list[str]:
    """The command that starts vLLM's server in this environment.

    Args:
        model: folder or hub id of the base model.
        options: those of ``vllm serve``.

    Raises:
        HeadEditError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise HeadEditError("Serving edits needs the package vllm: pip install 'headedit[vllm]'.")
    return [sys.executable, "-m", _SERVER, "--model", model, *options]


def environment(edits: Sequence[str], *, slots: int | None = None, updates: bool = True) -> Mapping[str, str]:
    """The variables that a server with edits is started with.

    Args:
        edits: folders of saved edits, folders of such folders, or ``name=folder``.
        slots: how many edits a batch can have; None for the default.
        updates: whether clients can load and unload edits that lie below these folders.

    Raises:
        HeadEditError: there is no such folder, one that is given a name holds no edits, or two edits have one name.
    """
    named_edits(edits)
    found = {VARIABLE: os.pathsep.join(edits), _UPDATES: "1" if updates else "0"}
    if slots is not None:
        found[SLOTS_VARIABLE] = str(slots)
    allowed = os.environ.get(_PLUGINS)
    if allowed is not None and _PLUGIN not in allowed.split(","):
        found[_PLUGINS] = ",".join([*filter(None, [allowed]), _PLUGIN])
    return found
