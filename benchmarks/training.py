"""One training step with all labels: forward, loss, backward, optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.spacegroup import crystal

from benchmarks import baseline
from benchmarks.agreement import largest
from benchmarks.cases import bare, primitive, published_crystals, random_model, rattled, read_frames
from benchmarks.response import ANY, SYMMETRIC
from benchmarks.timing import Timing, interleave, summarize
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.network import MACEFieldNetwork, build_network
from fieldflows.datasets.frame import LabeledFrame
from fieldflows.training.config import OptimizerSection, Term
from fieldflows.training.data import Batch, make_batch, make_frames
from fieldflows.training.losses import Loss
from fieldflows.training.optimize import make_optimizer
from fieldflows.training.response import full_response

SYMPREC = 1e-3
"""Tolerance of the training's symmetrization in Å, its default."""


def mixed_batch(source: str) -> list[Atoms]:
    """Return the primitive cells of four crystals: of 8 to 20 atoms from the data files, or published ones."""
    folder = os.environ.get("FIELDFLOWS_DATA")
    if source == "data" and folder:
        frames = read_frames(Path(folder) / "dielectric_valid_dev.extxyz.xz")
        fitting = [atoms for atoms in frames if 8 <= len(atoms) <= 20]
        chosen = np.random.default_rng(0).choice(len(fitting), size=4, replace=False)
        return [primitive(bare(fitting[i])) for i in chosen]
    anatase = crystal(
        ["Ti", "O"], basis=[(0, 0, 0), (0, 0, 0.2081)], spacegroup=141, cellpar=(3.785, 3.785, 9.514, 90, 90, 90)
    )
    niobate = crystal(
        ["Nb", "Li", "O"],
        basis=[(0, 0, 0), (0, 0, 0.2829), (0.0492, 0.3446, 0.0647)],
        spacegroup=161,
        cellpar=(5.14829, 5.14829, 13.8631, 90, 90, 120),
        primitive_cell=True,
    )
    zircon = crystal(
        ["Zr", "Si", "O"],
        basis=[(0, 0.75, 0.125), (0, 0.25, 0.375), (0, 0.0661, 0.1953)],
        spacegroup=141,
        setting=2,
        cellpar=(6.607, 6.607, 5.982, 90, 90, 90),
    )
    return [primitive(atoms) for atoms in (published_crystals()["q9"], niobate, anatase, zircon)]


def labeled(crystals: list[Atoms], seed: int = 4) -> list[LabeledFrame]:
    """Return frames with random labels of every kind."""
    random = np.random.default_rng(seed)
    frames = []
    for number, atoms in enumerate(crystals):
        n = len(atoms)
        shapes = {
            "energy": (),
            "forces": (n, 3),
            "stress": (3, 3),
            "polarization": (3,),
            "born_effective_charges": (n, 3, 3),
            "polarizability": (3, 3),
        }
        labels = {name: np.asarray(random.normal(scale=0.1, size=shape)) for name, shape in shapes.items()}
        frames.append(LabeledFrame(atoms, labels, material=str(number), source="random", source_index=number))
    return frames


class Trainee:
    """A network in training: weights, optimizer, and a way to predict.

    Args:
        network: Its weights.
        predict: Batch to predictions with a graph.
        frames: The frames of the batch.
    """

    def __init__(
        self, network: MACEFieldNetwork, predict: Callable[[Batch], Mapping[str, torch.Tensor]], frames: list
    ) -> None:
        self.parameters = {name: p.requires_grad_(True) for name, p in network.named_parameters()}
        self.predict, self.frames = predict, frames
        self.labels = tuple(baseline.RESPONSE)
        self.loss = Loss({name: Term() for name in self.labels}, dict.fromkeys(self.labels, 1.0))
        self.optimizer = make_optimizer(self.parameters, OptimizerSection())

    def gradients(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Return loss and gradients without a step."""
        value = self._backward()
        return value, {k: p.grad.clone() for k, p in self.parameters.items() if p.grad is not None}

    def step(self) -> float:
        """Make one step and return the loss before it."""
        value = self._backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 10.0)
        self.optimizer.step()
        return value

    def _backward(self) -> float:
        batch = make_batch(self.frames, self.labels, "cpu")
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.loss(self.predict(batch), batch)
        loss.backward(inputs=list(self.parameters.values()))
        return float(loss.detach())


def _trainee(network: MACEFieldNetwork, crystals: list[Atoms], variant: str | None) -> Trainee:
    """Return a network in training, with its own copy of the weights: the baseline, or the package."""
    twin = build_network(network.config, network.dtype, seed=0)
    twin.load_state_dict(network.state_dict())
    symprec = SYMPREC if variant == SYMMETRIC else None
    frames = make_frames(
        labeled(crystals),
        baseline.RESPONSE,
        network.config.atomic_numbers,
        network.config.r_max,
        network.dtype,
        symprec=symprec,
    )
    if variant is None:
        return Trainee(twin, lambda batch: baseline.response(twin, batch.graph, create_graph=True), frames)
    engine = fastest(twin)
    return Trainee(twin, lambda batch: full_response(engine, batch, create_graph=True), frames)


def gradient_difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference of gradients, each relative to the norm of all of them."""
    norm = float(torch.sqrt(torch.stack([g.square().sum() for g in expected.values()]).sum()))
    return largest(float((g - found[name]).norm()) / norm for name, g in expected.items())


def measure_training(
    crystals: Mapping[str, Atoms], source: str, repeats: int, channels: int, dtype: torch.dtype
) -> Iterator[Timing]:
    """Yield one step on one crystal and on a mixed batch, rattled and at their symmetry."""
    batches = {"q9": [crystals["q9"]], "mix4": mixed_batch(source)} if "q9" in crystals else {}
    for tag, members in batches.items():
        network = random_model(members, channels, dtype).network
        for variant in (ANY, SYMMETRIC):
            moved = [rattled(atoms, seed=i) for i, atoms in enumerate(members)] if variant == ANY else members
            reference, package = _trainee(network, moved, None), _trainee(network, moved, variant)
            (loss, expected), (same, found) = reference.gradients(), package.gradients()
            difference = max(abs(loss - same) / abs(loss), gradient_difference(expected, found))
            times = interleave({"baseline": reference.step, "product": package.step}, repeats)
            names = " ".join(atoms.get_chemical_formula(empirical=True) for atoms in members)
            subject = (tag, names, sum(map(len, members)))
            yield summarize("training", subject, variant, times["baseline"], times["product"], difference)
