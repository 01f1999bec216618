"""Files are written in one step: at any moment the old or the new is on disk, whole, and nothing else stays there."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE
from headedit.io import files
from headedit.io.files import write_atomically

SCRIPT = Path(__file__).with_name("killed_saves.py")
KILLS = int(os.environ.get("HEADEDIT_KILLS", "25"))
SAVES = 25
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forks of one process")
locks = pytest.mark.skipif(files.fcntl is None, reason="an abandoned file is known by its lock")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What a reader found while writers were killed, or two wrote; see ``killed_saves.py``."""
    words = [sys.executable, SCRIPT, tmp_path_factory.mktemp("saved"), KILLS, SAVES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr)
    return json.loads(done.stdout)


@forks
@pytest.mark.parametrize("form", ["full", "hardened"])
def test_saving_over_good_edits_survives_a_kill_at_any_moment(form, outcomes):
    found = outcomes[form]
    assert "lost" not in found
    assert found["one"] + found["other"] == KILLS
    assert min(found["one"], found["other"]) > 0
    assert (found["files"], found["warnings"]) == ([TENSOR_FILE, CONFIG_FILE], 0)


@forks
def test_of_two_writers_into_one_folder_one_wins_whole(outcomes):
    found = outcomes["writers"]
    assert "lost" not in found
    assert min(found["one"], found["other"]) > 0
    assert (found["files"], found["warnings"]) == ([TENSOR_FILE, CONFIG_FILE], 0)


@pytest.fixture(params=["unnamed files", "no unnamed files", "files without names that cannot be linked"])
def system(request, monkeypatch):
    """A system with files that have no name, one without, and one where they cannot be given one."""
    if request.param == "no unnamed files":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "files without names that cannot be linked":

        def refuse(*args, **kwargs):
            raise PermissionError("no links")

        monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_a_written_file_has_the_content_and_the_usual_mode_and_nothing_is_left_beside_it(tmp_path, system):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"old")
        write_atomically(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, system, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_a_folder_cannot_be_written(tmp_path, system):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WRITER = """
import os, sys
from pathlib import Path
from headedit.io.files import write_atomically
def killed(*args):
    os._exit(77)
os.replace = killed
if sys.argv[2] == "no unnamed files" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
write_atomically(Path(sys.argv[1]), b"never there")
"""


@locks
def test_the_next_write_removes_what_a_killed_writer_left(tmp_path, system):
    killed = subprocess.run([sys.executable, "-c", WRITER, tmp_path / "file", system])
    assert killed.returncode == 77
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    write_atomically(tmp_path / "another", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


@locks
def test_the_file_of_a_writer_that_is_at_work_is_not_removed(tmp_path, system, monkeypatch):
    replace, seen = os.replace, []

    def replace_meanwhile(source, target):
        if Path(target).name == "slow":
            write_atomically(tmp_path / "quick", b"quick")
            seen.append(Path(source).is_file())
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_meanwhile)
    write_atomically(tmp_path / "slow", b"slow")
    assert seen == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick", "slow"]


def test_files_of_others_whose_names_begin_with_a_dot_stay(tmp_path):
    names = [".gitignore", ".cache.headedit-tmp", ".file.abcdefgh"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write_atomically(tmp_path / "file", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "file"])


def test_threads_that_write_one_file_leave_the_whole_content_of_one(tmp_path, system):
    contents = [bytes([number]) * 50_000 for number in range(4)]

    def write(content):
        for _ in range(10):
            write_atomically(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
