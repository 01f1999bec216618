"""Hard-concrete gates against their definition, the published values, and sampling."""

import pytest
import torch

from headedit.edits.gates import SATURATED, HardConcrete

GATE = HardConcrete()
LOG_ALPHA = torch.tensor([-4.0, -2.4, -1.0, 0.0, 0.7, 2.0, 5.0])


def test_the_two_estimators_have_their_published_values():
    at = torch.tensor([-2.4, 2.0])
    assert [round(v, 3) for v in GATE.clip(at).tolist()] == [0.0, 0.957]
    assert [round(v, 3) for v in GATE.expectation(at).tolist()] == [0.088, 0.875]


@pytest.mark.parametrize("gate", [GATE, HardConcrete(temperature=2 / 3, low=-0.2, high=1.3)])
def test_samples_agree_with_both_closed_forms(gate):
    torch.manual_seed(0)
    samples = gate.sample(LOG_ALPHA.expand(200_000, -1))
    assert samples.min() == 0
    assert samples.max() == 1
    assert torch.allclose(samples.mean(0), gate.expectation(LOG_ALPHA), atol=3e-3)
    assert torch.allclose((samples > 0).float().mean(0), gate.open_probability(LOG_ALPHA), atol=4e-3)


def test_the_quadrature_is_exact_to_single_precision():
    nodes = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    share = (nodes + 0.1) / 1.2
    survival = torch.sigmoid(LOG_ALPHA.double()[:, None] - 0.33 * torch.logit(share))
    assert torch.allclose(GATE.expectation(LOG_ALPHA).double(), torch.trapezoid(survival, nodes), atol=1e-6)


def test_saturated_gates_are_exact_in_every_estimator_and_in_samples():
    ends = torch.tensor([SATURATED, -SATURATED], requires_grad=True)
    for values in (GATE.clip(ends), GATE.expectation(ends), GATE.sample(ends), GATE.open_probability(ends)):
        assert values.tolist() == [1.0, 0.0]
        (gradient,) = torch.autograd.grad(values.sum(), ends)
        assert gradient.tolist() == [0.0, 0.0]


def test_the_clipped_gate_closes_and_opens_where_the_method_says():
    edge = torch.logit(torch.tensor(0.1 / 1.2))
    assert edge.item() == pytest.approx(-2.398, abs=1e-3)
    assert GATE.clip(edge - 1e-3) == 0
    assert GATE.clip(edge + 1e-3) > 0
    assert GATE.clip(-edge + 1e-3) == 1


def test_samples_carry_a_gradient_to_the_logits():
    logits = torch.zeros(64, requires_grad=True)
    torch.manual_seed(0)
    GATE.sample(logits).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).sum() > 10
