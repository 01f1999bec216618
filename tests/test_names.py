"""The name that is saved of a base model: a hub id as it is, of a path its last part."""

import os
from pathlib import Path

import pytest

from headedit.hf.names import portable_name


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-8B", "a/b_c.d", "someone/tiny-llama", ""])
def test_the_id_of_a_hub_repository_is_saved_as_it_is(name):
    assert portable_name(name) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/models/tiny", "tiny"),
        ("/home/me/models/tiny/", "tiny"),
        ("/home/me/models/tiny/.", "tiny"),
        ("/home/me/models/with space", "with space"),
        ("./tiny", "tiny"),
        ("../../models/tiny", "tiny"),
        (".hidden/tiny", "tiny"),
        ("models/of/mine", "mine"),
        ("~/models/tiny", "tiny"),
        ("~", ""),
        ("~me", ""),
        ("/", ""),
        (r"C:\Users\me\models\tiny", "tiny"),
        ("C:/Users/me/tiny", "tiny"),
        ("C:\\", ""),
        (r"\\server\share\tiny", "tiny"),
        ("file:///home/me/models/tiny%20one/", "tiny one"),
        ("file:/home/me/tiny", "tiny"),
        ("https://me:secret@host.org/models/tiny?token=secret", "tiny"),
        (Path("/home/me/tiny"), "tiny"),
        (None, ""),
        (
            "/home/me/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f",
            "meta-llama/Llama-3.1-8B",
        ),
        ("/home/me/.cache/huggingface/hub/models--gpt2/snapshots/11c5a3d", "gpt2"),
    ],
)
def test_of_a_path_the_last_part_is_saved(path, name):
    assert portable_name(path) == name


def test_a_folder_that_reads_as_a_hub_id_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable_name("models/tiny") == "models/tiny"
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert portable_name("models/tiny") == "tiny"
    assert portable_name(os.curdir) == tmp_path.name
