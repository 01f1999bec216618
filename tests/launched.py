"""Command lines with two processes, as a user types them, and what they leave."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

TORCHRUN = "torchrun --nproc-per-node 2 --master-port PORT"
ACCELERATE = "accelerate launch --config_file CONFIG --main_process_port PORT"


def start(line, folder, **environment):
    """Starts a command line with a port of its own for PORT, and the files of this environment for programs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program, *words = line.replace("PORT", port).split()
    found = Path(sys.executable).with_name(program)
    return subprocess.Popen(
        [str(found), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "400", **environment},
    )


def run(line, folder, **environment):
    """Runs a command line; returns its exit code and what it printed."""
    process = start(line, folder, **environment)
    try:
        text, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, re.sub(r"\s+", " ", text)


def difference(one, two):
    """The largest difference between two folders' edits, relative to the largest value of each tensor."""
    first, second = (load_file(Path(folder) / "headedit.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max() / first[n].abs().max().clamp(min=1e-12)) for n in first)


def changed(folder):
    """The largest value of any offset."""
    return max(
        float(t.abs().max())
        for name, t in load_file(Path(folder) / "headedit.safetensors").items()
        if name.endswith("offset")
    )
