"""One step of dynamics: energy, forces, stress and polarization against plain mace-torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from ase import Atoms

from benchmarks import baseline
from benchmarks.agreement import response_difference
from benchmarks.cases import rattled
from benchmarks.response import subject
from benchmarks.timing import Timing, interleave, summarize
from fieldflows.backends.mace_field._mace import ScaleShiftMACE, contained_imports
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import MACEFieldNetwork

with contained_imports():
    from mace import data
    from mace.tools import AtomicNumberTable, torch_geometric

OWN, GIVEN = "its own data pipeline", "the package's neighbor list"
STEP = 0.02
"""Width of the random displacements from step to step in Å, some femtoseconds at room temperature."""


class PlainMACE:
    """The backbone alone, evaluated as mace-torch's own calculator does: energy, forces, stress, no polarization.

    Args:
        network: The network whose weights it takes.
    """

    def __init__(self, network: MACEFieldNetwork) -> None:
        default = torch.get_default_dtype()
        torch.set_default_dtype(network.dtype)
        try:
            # modules compiled by TorchScript, which is mace-torch's default
            self.model = ScaleShiftMACE(**network.config.backbone_arguments())
        finally:
            torch.set_default_dtype(default)
        self.model.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("field_")})
        self.model.eval().requires_grad_(False)
        self.network = network
        self.table = AtomicNumberTable(network.config.atomic_numbers)

    def own_batch(self, atoms: Atoms) -> dict[str, torch.Tensor]:
        """Return the batch of mace-torch's data pipeline."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.network.dtype)
        try:
            config = data.config_from_atoms(atoms)
            item = data.AtomicData.from_config(config, z_table=self.table, cutoff=self.network.config.r_max)
            loader = torch_geometric.dataloader.DataLoader([item], batch_size=1, shuffle=False, drop_last=False)
            return dict(next(iter(loader)).to_dict())
        finally:
            torch.set_default_dtype(default)

    def given_batch(self, atoms: Atoms) -> dict[str, torch.Tensor]:
        """Return the batch from the package's neighbor list, without what mace-torch does not read."""
        graph = baseline.graph_of(self.network, atoms)
        return {**graph, "num_graphs": torch.tensor(1)}

    def evaluate(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return energy, forces and stress in one call."""
        found = self.model(batch, compute_force=True, compute_stress=True)
        return {
            "energy": found["energy"][0].detach().numpy(),
            "forces": found["forces"].detach().numpy(),
            "stress": found["stress"][0].detach().numpy(),
        }


def walk(atoms: Atoms, steps: int, seed: int = 2) -> list[Atoms]:
    """Return successive frames of a random walk, without symmetry from the start."""
    random = np.random.default_rng(seed)
    frames = [rattled(atoms)]
    for _ in range(steps - 1):
        frames.append(frames[-1].copy())
        frames[-1].positions += random.normal(scale=STEP, size=frames[-1].positions.shape)
    return frames


def measure_dynamics(model: MACEFieldModel, crystals: Mapping[str, Atoms], repeats: int) -> Iterator[Timing]:
    """Yield one step per crystal, against mace-torch with its own data pipeline and with the package's graph.

    Both compute E, F and stress; the package computes P as well.  Every repeat is another step of the same walk.
    """
    plain = PlainMACE(model.network)
    for tag, atoms in crystals.items():
        frames = walk(atoms, repeats + 1)
        stepper = model.stepper()
        batches = {OWN: plain.own_batch, GIVEN: plain.given_batch}
        differences = {}
        for name, batch in batches.items():
            found, expected = stepper.evaluate(frames[0]), plain.evaluate(batch(frames[0]))
            differences[name] = response_difference(expected, found)
        sides = {name: _stepping(frames, lambda a, b=batch: plain.evaluate(b(a))) for name, batch in batches.items()}
        sides["product"] = _stepping(frames, stepper.evaluate)
        times = interleave(sides, repeats)
        for name in batches:
            yield summarize(
                "dynamics",
                subject(tag, atoms),
                f"mace-torch with {name}",
                times[name],
                times["product"],
                differences[name],
            )


def _stepping(frames: list[Atoms], evaluate: Callable[[Atoms], object]) -> Callable[[], object]:
    """Return a function that evaluates the next frame at each call; the first one was for warming up."""
    following = iter(frames[1:])
    return lambda: evaluate(next(following))
