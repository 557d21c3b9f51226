import math

import pytest
import torch

from fieldflows.backends.mace_field.network import build_network
from fieldflows.training.config import OptimizerSection
from fieldflows.training.ema import MovingAverage
from fieldflows.training.optimize import (
    Schedule,
    decays,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from tests.training.crystals import teacher


def test_cosine_from_peak_to_final_fraction():
    schedule = Schedule(OptimizerSection(learning_rate=0.1, warm_up_steps=0, final_fraction=0.2))
    assert schedule.learning_rate(0, 0.0) == pytest.approx(0.1)
    assert schedule.learning_rate(10, 0.5) == pytest.approx(0.1 * 0.6)
    assert schedule.learning_rate(20, 1.0) == pytest.approx(0.02)
    assert schedule.learning_rate(20, 1.7) == pytest.approx(0.02)


def test_warm_up_is_linear():
    schedule = Schedule(OptimizerSection(learning_rate=1.0, warm_up_steps=4, schedule="constant"))
    assert [schedule.learning_rate(step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_plateau_cuts_after_patience_and_survives_a_restart():
    settings = OptimizerSection(
        learning_rate=1.0, warm_up_steps=0, schedule="plateau", plateau_patience=2, plateau_factor=0.5
    )
    schedule = Schedule(settings)
    for score in (3.0, 2.0, 2.5, 2.5):
        schedule.observe(score)
    assert schedule.learning_rate(9, 0.0) == 0.5
    again = Schedule(settings)
    schedule.observe(2.1)
    again.restore(schedule.state())
    again.observe(2.1)
    assert again.learning_rate(9, 0.0) == 0.25


def test_plateau_has_a_floor():
    schedule = Schedule(
        OptimizerSection(schedule="plateau", plateau_patience=1, warm_up_steps=0, learning_rate=1.0, final_fraction=0.1)
    )
    schedule.observe(1.0)
    for _ in range(20):
        schedule.observe(2.0)
    assert schedule.learning_rate(0, 0.0) == 0.1


def test_weight_decay_acts_on_interactions_and_products_only():
    network = teacher()
    decayed = {name for name, _ in network.named_parameters() if decays(name)}
    assert "interactions.0.linear.weight" in decayed
    assert "products.0.symmetric_contractions.contractions.0.weights_max" in decayed
    assert not any(name.startswith(("node_embedding", "readouts", "field", "element")) for name in decayed)
    optimizer = make_optimizer(dict(network.named_parameters()), OptimizerSection(weight_decay=0.1))
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert counts[0] == len(decayed)
    assert sum(counts) == len(list(network.parameters()))


@pytest.mark.parametrize("kind", ["adam", "amsgrad", "adamw"])
def test_moments_come_back_bit_by_bit(kind):
    def made():
        torch.manual_seed(0)
        parameters = {"interactions.a.linear.weight": torch.nn.Parameter(torch.randn(3, 2)),
                      "b": torch.nn.Parameter(torch.randn(4))}  # fmt: skip
        return parameters, make_optimizer(parameters, OptimizerSection(kind=kind, weight_decay=0.01))

    def steps(parameters, optimizer, numbers):
        for k in numbers:
            optimizer.zero_grad()
            sum((p * (k + 1)).square().sum() + p.sum() for p in parameters.values()).backward()
            optimizer.step()

    parameters, optimizer = made()
    steps(parameters, optimizer, range(3))
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer, parameters).items()}
    weights = {k: v.detach().clone() for k, v in parameters.items()}
    steps(parameters, optimizer, range(3, 6))

    other, fresh = made()
    with torch.no_grad():
        for name, value in weights.items():
            other[name].copy_(value)
    restore_optimizer(fresh, other, saved)
    steps(other, fresh, range(3, 6))
    assert all(torch.equal(other[name], parameters[name]) for name in parameters)
    expected = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if kind == "amsgrad" else set())
    assert {key.split("/")[-1] for key in saved} == expected


def test_average_of_constant_weights_is_that_constant_and_lags_otherwise():
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    average = MovingAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(step=1)
    assert average.average["w"].tolist() == pytest.approx([1 - 2 / 11] * 2)
    expected = 1 - 2 / 11
    for step in range(2, 200):
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + 1 - decay
    assert average.average["w"].tolist() == pytest.approx([expected] * 2)
    assert math.isclose(expected, 1.0, abs_tol=1e-12)


def test_applied_average_is_put_back():
    network = build_network(teacher().config, seed=1)
    parameters = dict(network.named_parameters())
    average = MovingAverage(parameters, 0.9)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(1.0)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    with average.applied():
        assert all(torch.equal(parameters[n], average.average[n]) for n in parameters)
    assert all(torch.equal(parameters[n], before[n]) for n in parameters)


def test_amsgrad_follows_the_published_recursion():
    """Reddi, Kale and Kumar, ICLR 2018, with the bias correction of Adam, as torch documents it."""
    parameter = torch.nn.Parameter(torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64))
    optimizer = make_optimizer({"x": parameter}, OptimizerSection(kind="amsgrad", learning_rate=0.1))
    x, first, second, largest = parameter.detach().clone(), 0.0, 0.0, 0.0
    for step, scale in enumerate((1.0, -0.2, 0.1, 3.0), start=1):
        gradient = scale * torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        largest = torch.maximum(torch.as_tensor(largest, dtype=torch.float64), second)
        x = x - 0.1 * (first / (1 - 0.9**step)) / ((largest / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), x, rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [torch.float32, torch.float64])
def test_moments_of_an_optimizer_in_another_form_are_taken(count):
    """Runs that were begun with torch's default form keep their number of steps in either precision."""
    values = torch.linspace(-1, 1, 7, dtype=torch.float64)
    old = torch.nn.Parameter(values.clone())
    plain = torch.optim.Adam([old], lr=0.01, amsgrad=True, foreach=False)
    for _ in range(3):
        old.grad = old.detach() ** 2
        plain.step()
    plain.state[old]["step"] = plain.state[old]["step"].to(count)
    new = torch.nn.Parameter(old.detach().clone())
    fused = make_optimizer({"x": new}, OptimizerSection(kind="amsgrad", learning_rate=0.01))
    restore_optimizer(fused, {"x": new}, optimizer_tensors(plain, {"x": old}))
    old.grad = old.detach() ** 2
    new.grad = new.detach() ** 2
    plain.step()
    fused.step()
    torch.testing.assert_close(new.detach(), old.detach(), rtol=1e-14, atol=0)
