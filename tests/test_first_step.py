"""What a run does before its first optimiser step."""

import pytest
from tiny import tiny_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

import headedit


class FirstStep(Exception):
    """Ends a run at its first optimiser step."""


@pytest.mark.parametrize("recipe", ["localise", "ungated"])
def test_few_examples_are_passed_through_the_model_before_the_first_step(recipe, tmp_path):
    model = tiny_model("llama")
    tokens = [3 + i % 50 for i in range(40)]
    rows = [{"input_ids": tokens, "labels": [-100] * 39 + tokens[39:]}] * 120
    passed = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def stop(*_):
        raise FirstStep

    hook = register_optimizer_step_pre_hook(stop)
    options = {"recipe": recipe, "batch_size": 8, "output_dir": tmp_path, "progress": False}
    try:
        with pytest.raises(FirstStep):
            headedit.fit(headedit.attach(model), rows, rows[:40], **options)
    finally:
        hook.remove()
    assert sum(passed) <= 28, passed  # a batch, the activations' size on 512 tokens, and probes of a few rows
    assert sum(passed) >= 8 + 13
