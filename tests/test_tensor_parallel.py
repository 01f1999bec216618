"""Tensor parallelism: each process edits its own heads, and all together give what one process gives."""

import pytest
import tensor_parallel as tp
from tiny import tiny_model
from torch import distributed

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")


def test_two_processes_that_share_the_heads_give_what_one_process_gives(tmp_path):
    tp.in_processes(2, tp.give_what_one_gives, tmp_path, ("llama", "qwen3", "gpt_neox", "phi3"), {})


def test_four_processes_that_share_the_heads_give_what_one_process_gives(tmp_path):
    tp.in_processes(4, tp.give_what_one_gives, tmp_path, ("llama", "qwen3", "gpt_neox"), tp.HEADS)


def test_edits_on_a_tensor_parallel_model_are_switched_routed_saved_and_loaded_and_not_merged(tmp_path):
    tp.in_processes(2, tp.are_used_in_every_way, tmp_path)


def test_two_processes_that_share_the_heads_learn_and_resume_as_one_process_does(tmp_path):
    wanted = tp.flat(tp.learn(tiny_model("llama"), tmp_path / "one").module.parameters())
    assert wanted.abs().max() > 0.01
    tp.in_processes(2, tp.learn_what_one_learns, tmp_path, wanted)


def test_inputs_that_are_whole_or_that_torch_has_split_are_edited_alike(tmp_path):
    tp.in_processes(2, tp.take_inputs_of_every_kind, tmp_path)
