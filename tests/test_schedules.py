"""The schedules of λ and of learning rates, by value."""

import math

import pytest
import torch
from tiny import tiny_model

import headedit
from headedit import HeadEditError, Objective
from headedit.training.loop.objective import ReleasedObjective
from headedit.training.loop.schedules import LR_SCHEDULES, Moment, hf_name, lambda_factor, lr_factor


@pytest.mark.parametrize(
    ("schedule", "moment", "expected"),
    [
        ("linear", Moment(0, 100), 0.0),
        ("linear", Moment(25, 100), 0.25),
        ("constant", Moment(0, 100), 1.0),
        ("cyclic", Moment(0, 100), 0.5),
        ("cyclic", Moment(5, 100), 1.0),
        ("cyclic", Moment(15, 100), 0.0),
        ("cyclic", Moment(25, 100), 1.0),
        ("exponential", Moment(0, 100), 1.0),
        ("exponential", Moment(100, 200), math.exp(-1)),
        ("performance", Moment(50, 100), 1.0),
        ("performance", Moment(50, 100, (2.0, 1.0, 0.5)), 1.1),
        ("performance", Moment(50, 100, (1.0, 2.0, 2.0, 1.0)), 0.95),
        ("performance", Moment(50, 100, tuple(map(float, range(50)))), 0.0),
    ],
)
def test_every_lambda_schedule_has_its_published_values(schedule, moment, expected):
    assert lambda_factor(schedule, moment) == pytest.approx(expected)


def test_the_weights_are_the_two_lambdas_times_the_factor():
    objective = Objective(lambda_offset=0.2, lambda_scale=0.4)
    assert objective.weights(Moment(0, 4)) == (0.0, 0.0)
    assert objective.weights(Moment(2, 4)) == (0.1, 0.2)
    assert Objective(lambda_offset=0.2, schedule="exponential").weights(Moment(0, 4)) == (0.2, 0.0)


@pytest.mark.parametrize("bad", [-1e-9, float("nan")])
def test_a_negative_or_nan_lambda_is_refused(bad):
    with pytest.raises(HeadEditError, match=r"lambda_scale: found .*expected 0 or more"):
        Objective(lambda_scale=bad)


def test_the_released_penalty_divides_by_the_size_and_couples_the_two_lambdas():
    edits = headedit.attach(tiny_model("llama"))  # 2 layers of 4 heads
    found = ReleasedObjective(lambda_offset=0.3, schedule="constant").penalty(edits, Moment(0, 1)).item()
    each = torch.sigmoid(torch.tensor(0.33 * math.log(11))).item()
    assert found == pytest.approx((0.3 * 8 * each + 0.7 * 8 * each) / (4 * 2 * 4), rel=1e-5)


def test_the_exponential_learning_rate_is_that_of_the_paper():
    factor = lr_factor("exponential", warmup=10)
    assert factor(10) == pytest.approx(0.1)
    assert factor(110) == pytest.approx(0.1 * math.exp(-1))
    assert factor(5) == pytest.approx(0.05)
    assert factor(0) == 0


def test_the_cyclic_learning_rate_has_a_cycle_of_twenty_steps():
    factor = lr_factor("cyclic", warmup=0)
    assert [factor(t) for t in (0, 5, 10, 15)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert factor(37) == pytest.approx(factor(17))


def test_every_other_schedule_is_one_of_transformers():
    from transformers.trainer_utils import SchedulerType

    known = {kind.value for kind in SchedulerType}
    assert {hf_name(name) for name in LR_SCHEDULES} <= known
    assert [name for name in LR_SCHEDULES if lr_factor(name, 0) is not None] == ["constant", "cyclic", "exponential"]
    ours = {"adaptive", "cyclic", "exponential"}
    assert known - {"reduce_lr_on_plateau"} == set(LR_SCHEDULES) - ours


NEEDED = {
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-4}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-4}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 2}},
    "greedy": {"optim": "adamw_torch"},
}


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_warmup_steps_act_with_every_schedule(schedule, tmp_path):
    rows = [{"input_ids": [3, 4, 5 + i], "labels": [-100, 4, 5 + i]} for i in range(8)]

    def rates(warmup):
        arguments = {"warmup_steps": warmup, "logging_steps": 1, "use_cpu": True, **NEEDED.get(schedule, {})}
        settings = {"recipe": "ungated", "epochs": 1, "batch_size": 1, "lr_schedule": schedule, "progress": False}
        edits = headedit.attach(tiny_model("llama"))
        run = headedit.fit(edits, rows, rows[:1], output_dir=tmp_path / str(warmup), arguments=arguments, **settings)
        return run.history.column("learning_rate")[1]

    plain, warm, half = rates(0), rates(4), rates(0.5)
    assert warm == half
    assert warm[:4] != plain[:4]
    assert warm[0] < warm[1] < warm[2]
