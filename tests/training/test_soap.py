"""SOAP against its own formulas, against Adam where both are one, and on a problem that Adam finds hard."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.training.config import OptimizerSection
from fieldflows.training.optimize import make_optimizer, optimizer_tensors, restore_optimizer
from fieldflows.training.soap import SOAP, weight_blocks


def test_steps_are_those_of_the_formulas() -> None:
    """A flat parameter of two matrices, against numpy in the textbook form."""
    rng = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.as_tensor(rng.normal(size=26)))
    blocks = [(0, 4, 5), (20, 2, 3)]
    optimizer = SOAP([{"params": [parameter]}], {parameter: blocks}, lr=0.03, update_every=3)
    weights = [parameter.detach().numpy()[o : o + r * c].reshape(r, c).copy() for o, r, c in blocks]
    states: list[dict[str, np.ndarray]] = [{} for _ in blocks]
    for step in range(1, 9):
        flat = rng.normal(size=26)
        parameter.grad = torch.as_tensor(flat)
        optimizer.step()
        for (offset, rows, columns), weight, state in zip(blocks, weights, states, strict=True):
            _by_hand(weight, flat[offset : offset + rows * columns].reshape(rows, columns), state, step)
    found = parameter.detach().numpy()
    assert found == pytest.approx(np.concatenate([w.ravel() for w in weights]), rel=1e-9)


def _by_hand(weight: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], step: int) -> None:
    if step == 1:
        rows, columns = gradient.shape
        zeros = {"L": (rows, rows), "R": (columns, columns), "M": gradient.shape, "V": gradient.shape}
        state.update({key: np.zeros(shape) for key, shape in zeros.items()})
    state["L"] = 0.95 * state["L"] + 0.05 * gradient @ gradient.T
    state["R"] = 0.95 * state["R"] + 0.05 * gradient.T @ gradient
    if step == 1:
        state["QL"], state["QR"] = (torch.linalg.eigh(torch.as_tensor(state[k]))[1].numpy() for k in "LR")
    if step == 1:
        return
    state["M"] = 0.95 * state["M"] + 0.05 * gradient
    turned = state["QL"].T @ gradient @ state["QR"]
    state["V"] = 0.95 * state["V"] + 0.05 * turned**2
    mean = state["QL"].T @ state["M"] @ state["QR"] / (1 - 0.95 ** (step - 1))
    change = np.clip(mean / (np.sqrt(state["V"] / (1 - 0.95 ** (step - 1))) + 1e-10), -1, 1)
    weight -= 0.03 * state["QL"] @ change @ state["QR"].T
    if step % 3 == 0:
        for key in "LR":
            product = torch.as_tensor(state[key] @ state["Q" + key])
            state["Q" + key] = torch.linalg.qr(product)[0].numpy()


def test_gradients_of_low_rank_in_single_precision() -> None:
    """Weights of elements that a first batch does not hold have no gradient, others one of rank one."""
    parameter = torch.nn.Parameter(torch.zeros(2 * 64 * 64))
    optimizer = SOAP([{"params": [parameter]}], {parameter: [(0, 64, 64), (64 * 64, 64, 64)]}, lr=0.01)
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        outer = torch.outer(*torch.randn(2, 64, generator=generator)) * 1e-9
        parameter.grad = torch.cat([outer.ravel(), torch.zeros(64 * 64)])
        optimizer.step()
    assert torch.isfinite(parameter).all()
    assert parameter[: 64 * 64].detach().abs().max() > 1e-3
    assert (parameter[64 * 64 :] == 0).all()


def test_a_gradient_that_comes_once_moves_nothing_far() -> None:
    """As for the weights of an element that only the first batch, or only one later, holds."""
    for only in (0, 1, 5):
        parameter = torch.nn.Parameter(torch.zeros(12, 8))
        optimizer = SOAP([{"params": [parameter]}], {parameter: [(0, 12, 8)]}, lr=0.01, update_every=2)
        generator = torch.Generator().manual_seed(0)
        for step in range(12):
            parameter.grad = torch.zeros(12, 8)
            parameter.grad[:6] = torch.randn(6, 8, generator=generator) * 10.0 ** float(-step)
            if step == only:
                parameter.grad[6:] = torch.randn(6, 8, generator=generator)
            before = parameter.detach().clone()
            optimizer.step()
            # a rotation of 96 components that are at most 1
            assert torch.linalg.norm(parameter.detach() - before) <= 0.01 * 96**0.5 * 1.001


def test_a_column_is_adam() -> None:
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    ours, adams = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    blocks = [(k, 1, 1) for k in range(7)]
    soap = SOAP([{"params": [ours]}], {ours: blocks}, lr=0.1)
    adam = torch.optim.Adam([adams], lr=0.1, betas=(0.95, 0.95), eps=1e-10)
    for step in range(20):
        for parameter, optimizer in ((ours, soap), (adams, adam)):
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
            optimizer.step()
    assert ours.detach().numpy() == pytest.approx(adams.detach().numpy(), rel=1e-9)


def test_it_needs_fewer_steps_where_directions_are_mixed() -> None:
    """|A (W − W₀) B|² with A and B far from diagonal and of condition 100."""
    torch.manual_seed(0)
    turn = [torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0] for _ in range(4)]
    scales = torch.logspace(0, -2, 12, dtype=torch.float64)
    left, right = turn[0] * scales @ turn[1], turn[2] * scales @ turn[3]
    aim = torch.randn(12, 12, dtype=torch.float64)

    def end(kind: str, rate: float) -> float:
        weight = torch.nn.Parameter(torch.zeros(12, 12, dtype=torch.float64))
        settings = OptimizerSection(kind=kind, learning_rate=rate, weight_decay=0.0)
        optimizer = make_optimizer({"w": weight}, settings, network=torch.nn.ParameterDict({"w": weight}))
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / 300)
            optimizer.zero_grad()
            loss = (left @ (weight - aim) @ right).square().sum()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert min(end("soap", rate) for rate in (0.02, 0.05)) < 0.1 * min(end("adam", r) for r in (0.02, 0.05, 0.1))


def test_every_weight_of_a_network_is_in_one_block_and_the_state_resumes() -> None:
    config = NetworkConfig(atomic_numbers=[8, 14], atomic_energies=[0.0, 0.0], hidden_irreps="4x0e + 4x1o", r_max=4.0)

    def start() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        network = build_network(config, seed=3)
        parameters = dict(network.named_parameters())
        settings = OptimizerSection(kind="soap", learning_rate=0.01)
        return parameters, make_optimizer(parameters, settings, network=network)

    parameters, optimizer = start()
    blocks = weight_blocks(build_network(config, seed=3))
    for name, parameter in parameters.items():
        covered = sorted(k for o, r, c in blocks[name] for k in range(o, o + r * c))
        assert covered == list(range(parameter.numel())), name
    assert blocks["interactions.1.linear_up.weight"] == [(0, 4, 4), (16, 4, 4)]

    def take(found: dict[str, torch.nn.Parameter], by: torch.optim.Optimizer, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in found.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        by.step()

    for step in range(12):
        take(parameters, optimizer, step)
    again, second = start()
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(parameters[name])
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, parameters).items()}
    restore_optimizer(second, again, saved)
    for step in range(12, 24):
        take(parameters, optimizer, step)
        take(again, second, step)
    assert all(torch.equal(parameters[name], again[name]) for name in parameters)
