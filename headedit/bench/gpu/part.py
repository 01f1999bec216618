"""A part in a process of its own: ``python -m headedit.bench.gpu.part PART FOLDER SETTINGS``."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from headedit.bench.gpu.record import Data, Recorder
from headedit.version import __version__

_VERSIONS = ("torch", "transformers", "peft", "triton", "flash-attn", "bitsandbytes", "mamba-ssm", "causal-conv1d")


def main(arguments: list[str]) -> None:
    """Runs a part and marks its record as finished.

    Args:
        arguments: the part, the folder of its record, and the settings as JSON.
    """
    part, folder, settings = arguments[0], Path(arguments[1]), json.loads(arguments[2])
    recorder = Recorder(folder, part, settings)
    recorder.write(machine=machine(settings["device"]))
    if part == "tests":
        from headedit.bench.gpu.tests import run_tests as run
    elif part == "cost":
        from headedit.bench.gpu.cost import measure as run
    elif part == "decoding":
        from headedit.bench.gpu.decoding import measure as run
    elif part == "compare":
        from headedit.bench.gpu.comparison import measure as run
    else:
        from headedit.bench.gpu.memory import measure as run
    run(recorder, settings)
    recorder.write(state="finished")


def machine(device: str) -> Data:
    """Device and versions."""
    import torch

    found: dict[str, Any] = {"device": device, "python": platform.python_version(), "headedit": __version__}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        found |= {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
