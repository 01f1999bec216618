"""A terminal that asks for no colour with NO_COLOR gets none, in help, messages and the output of a command."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from headedit.demo import MODEL_FOLDER

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
"""An escape sequence that chooses a colour; bold, italic and the like are none."""
COMMANDS = {
    "help": (["eval", "--help"], 0),
    "a mistake": (["eval", "--modell", "x"], 2),
    "tables": (["plan", "--model", str(MODEL_FOLDER), "--max-length", "16", "--device", "cpu", "--memory", "1KiB"], 0),
}
PROGRAM = """
import sys
from headedit.cli.main import main
for arguments, code in {commands!r}:
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == code, (arguments, end.code)
    sys.stdout.flush(), sys.stderr.flush()
    print("END OF A COMMAND", flush=True)
"""


def printed(**environment):
    """What each command writes to a terminal of 120 columns, by its name."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    program = PROGRAM.format(commands=list(COMMANDS.values()))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written.decode(errors="replace")
    return dict(zip(COMMANDS, written.split(b"END OF A COMMAND"), strict=False))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_no_color_leaves_out_every_colour_and_without_it_there_are_some():
    coloured, plain = printed(), printed(NO_COLOR="1")
    assert [name for name in COMMANDS if not COLOUR.search(coloured[name])] == []
    assert [name for name in COMMANDS if (found := COLOUR.search(plain[name])) and found] == []
