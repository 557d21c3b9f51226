"""The polarizability that composition and volume alone predict: a Gaussian process inside the enthalpy.

Crystals of the same elements at the same density have similar refractive indices whatever their structure.  With some
hundred labeled crystals, that part is learned best by a smooth interpolation between compositions, and the network is
left with what the structure adds.  To the enthalpy of a cell of volume Ω is added

    F₀ = −½ ε_vac Ω χ₀(c, v) |𝓔|²,   χ₀ = exp[μ + Σ_m β_m k(x, x_m)],   k = (1 + √3 r) exp(−√3 r),

with the volume per atom v, the fractions c of the elements, statistics p(c) of properties of the elements (mean,
standard deviation, least and largest value over the atoms), and the distance

    r² = ((v − v_m)/ℓ_v)² + |p − p_m|²/ℓ_p² + |c − c_m|²/ℓ_c².

χ₀ is intensive, F₀ extensive, and both know the structure through the volume alone: F₀ is invariant under rotations
and permutations, changes neither energies nor forces, stresses, P or Z* at zero field, and adds ε_vac χ₀ I to α.
Every identity between the derivatives of F holds as before.  The reference compositions x_m and weights β_m are
fitted once (:mod:`fieldflows.training.composition`) and travel with the checkpoint.
"""

from __future__ import annotations

import math

import torch

from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.units import EPSILON_VACUUM

N_PROPERTIES = 16
"""Properties of an element (see :func:`fieldflows.training.composition.element_properties`)."""

N_STATISTICS = 4 * N_PROPERTIES
"""Statistics of a composition: mean, standard deviation, minimum and maximum of each property."""


class CompositionPolarizability(torch.nn.Module):
    """χ₀ of compositions at given volumes per atom; all constants are buffers in float64.

    Args:
        n_elements: Elements of the network.
        n_points: Reference compositions.
    """

    properties: torch.Tensor
    fractions: torch.Tensor
    volumes: torch.Tensor
    weights: torch.Tensor
    center: torch.Tensor
    spread: torch.Tensor
    lengths: torch.Tensor
    mean: torch.Tensor

    def __init__(self, n_elements: int, n_points: int) -> None:
        super().__init__()
        zeros = {
            "properties": (n_elements, N_PROPERTIES),
            "fractions": (n_points, n_elements),
            "volumes": (n_points,),
            "weights": (n_points,),
            "center": (1 + N_STATISTICS,),
            "spread": (1 + N_STATISTICS,),
            "lengths": (3,),
            "mean": (),
        }
        for name, shape in zeros.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.spread.fill_(1.0)
        self.lengths.fill_(1.0)
        self._known: tuple[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] | None = None

    def statistics(self, fractions: torch.Tensor) -> torch.Tensor:
        """Return mean, standard deviation, minimum and maximum of the properties, (g, 64), from (g, z) fractions."""
        table = self.properties.double()
        mean = fractions @ table
        spread = (fractions[:, :, None] * (table - mean[:, None]).square()).sum(dim=1).sqrt()
        present = (fractions > 0)[:, :, None]
        lowest = torch.where(present, table, math.inf).amin(dim=1)
        highest = torch.where(present, table, -math.inf).amax(dim=1)
        return torch.cat([mean, spread, lowest, highest], dim=1)

    def standardized(self, fractions: torch.Tensor, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return standardized volumes (g,) and statistics (g, 64)."""
        center, spread = self.center.double(), self.spread.double()
        statistics = (self.statistics(fractions) - center[1:]) / spread[1:]
        return (volumes - center[0]) / spread[0], statistics

    def kernel(self, fractions: torch.Tensor, volumes: torch.Tensor) -> torch.Tensor:
        """Return k(x, x_m), (g, m), at fractions (g, z) and volumes per atom (g,) in Å³."""
        volume, statistics = self.standardized(fractions, volumes)
        known_fractions = self.fractions.double()
        known_volume, known_statistics = self._references()
        lengths = self.lengths.double()
        squared = ((volume[:, None] - known_volume) / lengths[0]).square()
        squared = squared + _squared_distances(statistics, known_statistics) / lengths[1] ** 2
        squared = squared + _squared_distances(fractions, known_fractions) / lengths[2] ** 2
        # the derivative of the root at zero is avoided; that of the kernel there is zero
        scaled = (3 * squared + 1e-12).sqrt()
        return (1 + scaled) * torch.exp(-scaled)

    def _references(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return volumes and statistics of the reference compositions, computed anew when a buffer has changed."""
        buffers = (self.properties, self.fractions, self.volumes, self.center, self.spread)
        state = tuple((b.data_ptr(), b._version, b.device, b.dtype) for b in buffers)
        if self._known is None or self._known[0] != state:
            self._known = state, self.standardized(self.fractions.double(), self.volumes.double())
        return self._known[1]

    def forward(self, fractions: torch.Tensor, volumes: torch.Tensor) -> torch.Tensor:
        """Return χ₀, (g,), at fractions (g, z) and volumes per atom (g,) in Å³."""
        return torch.exp(self.mean.double() + self.kernel(fractions.double(), volumes) @ self.weights.double())


def _squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return |a − b|², (g, m), free of the cancellation of |a|² − 2ab + |b|²."""
    return torch.stack([(columns - row).square().sum(dim=1) for row in rows])


def composition_enthalpy(
    module: CompositionPolarizability, graph: Graph, field: torch.Tensor, strain: torch.Tensor | None
) -> torch.Tensor:
    """Return F₀ of each crystal in eV, shape (g,).

    Args:
        module: The fitted process.
        graph: A batch of crystals.
        field: (g, 3) in V/Å.
        strain: (g, 3, 3); its symmetric part deforms the cells, which changes volumes.
    """
    cells = graph["cell"].view(-1, 3, 3)
    volumes = torch.linalg.det(cells).abs()
    if strain is not None:
        one = torch.eye(3, dtype=strain.dtype, device=strain.device)
        volumes = volumes * torch.linalg.det(one + 0.5 * (strain + strain.transpose(-1, -2)))
    one_hot = graph["node_attrs"].double()
    counts = one_hot.new_zeros(len(cells), one_hot.shape[1]).index_add(0, graph["batch"], one_hot)
    atoms = counts.sum(dim=1)
    chi = module(counts / atoms[:, None], volumes / atoms)
    return -0.5 * EPSILON_VACUUM * volumes * chi * field.square().sum(dim=-1)
