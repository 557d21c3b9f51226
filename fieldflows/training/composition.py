"""Fit of the polarizability that composition and volume predict (:mod:`fieldflows.backends.mace_field.composition`).

A Gaussian process on ln χ, χ = tr(ε∞ − I)/3, of the training crystals: amplitude, noise and the lengths of the
kernel maximize the marginal likelihood (Rasmussen and Williams, Gaussian Processes for Machine Learning, Eq. 2.30)
of a fixed random part of them; the weights are those of all,

    β = a² (a² K + s² 1)⁻¹ (y − μ),   y_m = ln χ_m.

Logarithms, because crystals with a small gap have large χ that is known to a certain *fraction* at best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fieldflows.backends.mace_field.composition import N_PROPERTIES, CompositionPolarizability
from fieldflows.errors import SettingsError
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from fieldflows.backends.mace_field.network import MACEFieldNetwork
    from fieldflows.datasets.frame import LabeledFrame
    from fieldflows.training.data import Frame

FloatArray = NDArray[np.float64]

LEAST_FORMULAS = 30
"""Fewer different formulas do not tell how the polarizability depends on composition."""

LIKELIHOOD_FRAMES = 400
"""Crystals that decide about the kernel; more change it little and cost their cube."""


@dataclass(frozen=True)
class CompositionFit:
    """A fitted process.

    Attributes:
        module: The process.
        n_frames: Crystals that it was fitted to.
        noise: Standard deviation s of ln χ.
        amplitude: Standard deviation a of ln χ between compositions.
        left_out: Mean absolute errors of χ and of n when all crystals of a formula are left out of the fit.
    """

    module: CompositionPolarizability
    n_frames: int
    noise: float
    amplitude: float
    left_out: dict[str, float]

    def summary(self) -> dict[str, object]:
        """Return what a checkpoint says about it, in JSON types."""
        lengths = self.module.lengths.tolist()
        return {
            "frames": self.n_frames,
            "noise": self.noise,
            "amplitude": self.amplitude,
            "lengths": dict(zip(("volume", "properties", "fractions"), lengths, strict=True)),
            "leave_formula_out_mae": self.left_out,
        }


def element_properties(atomic_numbers: Sequence[int]) -> FloatArray:
    """Return properties of elements, shape (elements, 16), from pymatgen; a missing value is the mean of the others.

    In this order: electronegativity (Pauling), first ionization energy (eV), atomic radius (Å), period, group,
    valence electrons, Mendeleev number, whether in the d, p, s and f block, electron affinity (eV), atomic number,
    least and largest common oxidation state, van der Waals radius (Å).
    """
    from pymatgen.core import Element

    rows = []
    for z in atomic_numbers:
        element = Element.from_Z(int(z))
        states = element.common_oxidation_states or (0,)
        values = (
            element.X,
            element.ionization_energy,
            element.atomic_radius,
            element.row,
            element.group,
            element.group if element.group <= 12 else element.group - 10,
            element.mendeleev_no,
            *(element.block == block for block in "dpsf"),
            element.electron_affinity,
            z,
            min(states),
            max(states),
            element.van_der_waals_radius,
        )
        rows.append([np.nan if value is None else float(value) for value in values])
    table = np.array(rows)
    known = np.isfinite(table)
    means = np.where(known, table, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, table, means)


def fit_composition_polarizability(frames: Sequence[LabeledFrame], atomic_numbers: Sequence[int]) -> CompositionFit:
    """Return the process fitted to the crystals that have a polarizability.

    Args:
        frames: Labeled crystals.
        atomic_numbers: Elements of the network, in its order.

    Raises:
        SettingsError: If fewer than 30 different formulas have one.
    """
    chosen = [frame for frame in frames if _susceptibility(frame) > 0]
    formulas = [frame.material for frame in chosen]
    if len(set(formulas)) < LEAST_FORMULAS:
        raise SettingsError(
            f"model.composition_polarizability needs polarizabilities of at least {LEAST_FORMULAS} different formulas, "
            f"the training frames have {len(set(formulas))}.",
            "Set model.element_polarizability: true and model.composition_polarizability: false.",
        )
    counts = np.array([[np.count_nonzero(frame.atoms.numbers == z) for z in atomic_numbers] for frame in chosen], float)
    atoms = counts.sum(axis=1)
    volumes = np.array([frame.atoms.get_volume() for frame in chosen]) / atoms
    chi = np.array([_susceptibility(frame) for frame in chosen])
    module = _standardized_module(atomic_numbers, counts / atoms[:, None], volumes)
    parts = _distance_parts(module)
    target = np.log(chi)
    mean = float(target.mean())
    amplitude, noise, lengths = _most_likely(parts, target - mean)
    matrix = amplitude**2 * _kernel(parts, lengths) + noise**2 * np.eye(len(chi))
    inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    solution = inverse @ (target - mean)
    with torch.no_grad():
        module.lengths.copy_(torch.as_tensor(lengths))
        module.weights.copy_(torch.as_tensor(amplitude**2 * solution))
        module.mean.fill_(mean)
    left_out = np.exp(_left_out(inverse, solution, target, formulas))
    errors = {
        "epsilon": float(np.abs(left_out - chi).mean()),
        "refractive_index": float(np.abs(np.sqrt(1 + left_out) - np.sqrt(1 + chi)).mean()),
    }
    return CompositionFit(module, len(chosen), noise, amplitude, errors)


def isotropic_part_of_composition(frames: Sequence[Frame], network: MACEFieldNetwork) -> list[Frame]:
    """Return frames whose α is compared with α − (tr α/3) I + ε_vac χ₀ I in the loss.

    What the process leaves of the isotropic part of the training labels is noise to a network that has no other
    crystals to learn it from: it remembers it, and adds noise of the same size to crystals that it has not seen.

    Args:
        frames: Training frames.
        network: A network with a fitted process.

    Raises:
        SettingsError: If it has none.
    """
    if not network.config.composition_polarizability:
        raise SettingsError(
            "model.isotropic_polarizability is 'composition', but the network has no composition_polarizability.",
            "Set model.composition_polarizability: true, or take a backbone that has it.",
        )
    numbers = network.config.atomic_numbers
    made = []
    for frame in frames:
        if "polarizability" not in frame.labels:
            made.append(frame)
            continue
        size = len(frame.atoms)
        counts = [float(np.count_nonzero(frame.atoms.numbers == z)) for z in numbers]
        share = torch.tensor([counts], dtype=torch.float64) / size
        volume = torch.tensor([frame.atoms.get_volume() / size], dtype=torch.float64)
        chi = float(network.composition_polarizability(share, volume))
        label = frame.labels["polarizability"]
        target = label + (EPSILON_VACUUM * chi - np.trace(label) / 3) * np.eye(3)
        made.append(replace(frame, targets={**frame.targets, "polarizability": target}))
    return made


def _susceptibility(frame: LabeledFrame) -> float:
    """Return χ = tr α/(3 ε_vac) of a frame; 0 without a polarizability."""
    if "polarizability" not in frame.labels:
        return 0.0
    return float(np.trace(frame.labels["polarizability"])) / (3 * EPSILON_VACUUM)


def _standardized_module(
    atomic_numbers: Sequence[int], fractions: FloatArray, volumes: FloatArray
) -> CompositionPolarizability:
    """Return a module that holds the reference compositions and how they are standardized."""
    module = CompositionPolarizability(len(atomic_numbers), len(fractions))
    table = element_properties(atomic_numbers)
    assert table.shape[1] == N_PROPERTIES
    with torch.no_grad():
        module.properties.copy_(torch.as_tensor(table))
        module.fractions.copy_(torch.as_tensor(fractions))
        module.volumes.copy_(torch.as_tensor(volumes))
        features = torch.cat([module.volumes[:, None], module.statistics(module.fractions)], dim=1)
        spread = features.std(dim=0, correction=0)
        module.center.copy_(features.mean(dim=0))
        module.spread.copy_(torch.where(spread > 1e-9, spread, 1.0))
    return module


def _distance_parts(module: CompositionPolarizability) -> list[FloatArray]:
    """Return squared distances between the reference compositions by volume, properties and fractions."""
    volume, statistics = (value.numpy() for value in module.standardized(module.fractions, module.volumes))
    fractions = module.fractions.numpy()
    return [_squared(volume[:, None]), _squared(statistics), _squared(fractions)]


def _squared(rows: FloatArray) -> FloatArray:
    return np.stack([np.square(rows - row).sum(axis=1) for row in rows])


def _kernel(parts: Sequence[FloatArray], lengths: FloatArray) -> FloatArray:
    squared = sum(part / length**2 for part, length in zip(parts, lengths, strict=True))
    scaled = np.sqrt(3 * np.asarray(squared) + 1e-12)
    return (1 + scaled) * np.exp(-scaled)


def _most_likely(parts: Sequence[FloatArray], target: FloatArray) -> tuple[float, float, FloatArray]:
    """Return amplitude, noise and lengths of the largest marginal likelihood."""
    from scipy.linalg import cho_solve
    from scipy.optimize import minimize

    chosen = np.random.default_rng(0).permutation(len(target))[:LIKELIHOOD_FRAMES]
    blocks = [part[np.ix_(chosen, chosen)] for part in parts]
    y = target[chosen]

    def negative_log_likelihood(logarithms: FloatArray) -> float:
        amplitude, noise, *lengths = np.exp(logarithms)
        matrix = amplitude**2 * _kernel(blocks, np.array(lengths)) + noise**2 * np.eye(len(y))
        try:
            factor = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return 1e6
        return float(0.5 * y @ cho_solve((factor, True), y) + np.log(np.diag(factor)).sum())

    typical = [np.sqrt(np.median(part[part > 0])) if (part > 0).any() else 1.0 for part in parts]
    start = np.log([max(float(y.std()), 0.05), 0.15, *(1.5 * np.array(typical))])
    bounds = [(-3.0, 3.0), (-4.0, 1.0), *((-4.0, 6.0) for _ in parts)]
    found = minimize(negative_log_likelihood, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40})
    amplitude, noise, *lengths = np.exp(found.x)
    return float(amplitude), float(noise), np.array(lengths)


def _left_out(inverse: FloatArray, solution: FloatArray, target: FloatArray, formulas: Sequence[str]) -> FloatArray:
    """Return predictions of ln χ with all crystals of the same formula left out.

    With A = (a² K + s² 1)⁻¹ and w = A (y − μ), the residuals of a group g are (A_gg)⁻¹ w_g.
    """
    result = target.copy()
    names = np.array(formulas)
    for name in set(formulas):
        (group,) = np.nonzero(names == name)
        result[group] -= np.linalg.solve(inverse[np.ix_(group, group)], solution[group])
    return result
