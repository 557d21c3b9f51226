"""Identities that every model of F(R, 𝓔) must obey, whatever it was trained on, tried on a few frames.

Frames are displaced at random first: in a symmetric crystal many quantities vanish, and so would their violations.
Only :meth:`FieldModel.evaluate` is used, so that any backend can be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.backends.base import FieldModel, Response
from fieldflows.errors import FieldflowsError
from fieldflows.observables import ELECTRONIC_OBSERVABLES
from fieldflows.schemas.evaluation import IdentityCheck
from fieldflows.training.metrics import FloatArray

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.frame import LabeledFrame

MAX_ATOMS = 80
"""Frames with more atoms are tried only if there are no smaller ones."""

RATTLE = 0.03
"""Largest random displacement of a coordinate, Å."""

FINE = {"float64": 1e-6, "float32": 1e-4}
"""Relative tolerance of what holds to rounding, by type of the model."""

COARSE = {"float64": 1e-4, "float32": 2e-2}
"""Relative tolerance of finite differences."""

DISPLACEMENT = {"float64": 1e-3, "float32": 1e-2}
"""Step of finite differences, Å along a random unit direction of all atoms."""

FIELD_STEP = {"float64": 1e-3, "float32": 1e-2}
"""Step of finite differences by the field, V/Å."""

Deviation = tuple[float, float]
"""Largest deviation of a component, and the same relative to the largest component."""


@dataclass(frozen=True)
class Identity:
    """One identity.

    Attributes:
        name: Short name.
        formula: The identity.
        unit: Unit of the deviation.
        floor: Size below which deviations are not taken relative to the components, in this unit.
        exact: Whether it holds to rounding; else it is tried by finite differences.
        deviation: Takes a trial, returns pairs of what was found and what is expected.
    """

    name: str
    formula: str
    unit: str
    floor: float
    exact: bool
    deviation: Callable[[Trial], Iterator[tuple[Any, Any]]]


@dataclass
class Trial:
    """A displaced crystal and a model, with the answers that several identities share."""

    model: FieldModel
    atoms: Atoms
    generator: np.random.Generator
    dtype: str
    answers: dict[str, Response] = field(default_factory=dict)
    turn: FloatArray = field(default_factory=lambda: np.eye(3))

    def respond(self, atoms: Atoms, names: Sequence[str], applied: FloatArray | None = None) -> Response:
        """Return the response of a crystal, at zero field unless one is given."""
        return self.model.evaluate(atoms, fields=applied, observables=tuple(names))

    def electronic(self, name: str) -> FloatArray:
        """Return P, Z* or α of the crystal itself."""
        if "electronic" not in self.answers:
            self.answers["electronic"] = self.respond(self.atoms, ELECTRONIC_OBSERVABLES)
        return self.answers["electronic"].get(name)

    def turned(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Return a rotation with inversion Q, and P, Z* or α of the crystal turned by it."""
        if "turned" not in self.answers:
            self.turn = _orthogonal(self.generator)
            atoms = self.atoms.copy()
            atoms.set_cell(self.atoms.cell[:] @ self.turn.T)
            atoms.positions = self.atoms.positions @ self.turn.T
            self.answers["turned"] = self.respond(atoms, ELECTRONIC_OBSERVABLES)
        return self.turn, self.answers["turned"].get(name)

    def moved(self, step: FloatArray) -> Atoms:
        """Return the crystal with all atoms displaced by (n, 3) in Å."""
        other = self.atoms.copy()
        other.positions += step
        return other

    def direction(self) -> FloatArray:
        """Return a random displacement of all atoms with norm 1, (n, 3)."""
        step = self.generator.normal(size=self.atoms.positions.shape)
        return step / np.linalg.norm(step)

    def difference(self, function: Callable[[float], Any], step: float) -> FloatArray:
        """Return a central difference with a step and half of it, extrapolated to none: an error of fourth order."""
        one, half = (
            (np.asarray(function(h), dtype=float) - np.asarray(function(-h), dtype=float)) / (2 * h)
            for h in (step, step / 2)
        )
        return (4 * half - one) / 3


def _sum_rule(trial: Trial) -> Iterator[tuple[Any, Any]]:
    charges = trial.electronic("born_effective_charges")
    yield charges.sum(axis=0), np.zeros((3, 3))


def _symmetric(trial: Trial) -> Iterator[tuple[Any, Any]]:
    alpha = trial.electronic("polarizability")
    yield alpha, alpha.T


def _supercell(trial: Trial) -> Iterator[tuple[Any, Any]]:
    repeats = [1, 1, 1]
    repeats[int(np.argmin(trial.atoms.cell.lengths()))] = 2
    large = trial.respond(trial.atoms.repeat(repeats), ("polarization",))
    yield large.get("polarization"), trial.electronic("polarization")


def _rotated_charges(trial: Trial) -> Iterator[tuple[Any, Any]]:
    turn, found = trial.turned("born_effective_charges")
    yield found, turn @ trial.electronic("born_effective_charges") @ turn.T


def _rotated_polarization(trial: Trial) -> Iterator[tuple[Any, Any]]:
    turn, found = trial.turned("polarization")
    yield found, turn @ trial.electronic("polarization")


def _rotated_polarizability(trial: Trial) -> Iterator[tuple[Any, Any]]:
    turn, found = trial.turned("polarizability")
    yield found, turn @ trial.electronic("polarizability") @ turn.T


def _born_charges(trial: Trial) -> Iterator[tuple[Any, Any]]:
    direction = trial.direction()
    charges = trial.electronic("born_effective_charges")
    slope = trial.difference(
        lambda h: trial.respond(trial.moved(h * direction), ("polarization",)).get("polarization"),
        DISPLACEMENT[trial.dtype],
    )
    yield trial.atoms.get_volume() * slope, np.einsum("kij,kj->i", charges, direction)


def _polarizability(trial: Trial) -> Iterator[tuple[Any, Any]]:
    direction = trial.generator.normal(size=3)
    direction /= np.linalg.norm(direction)
    alpha = trial.electronic("polarizability")
    slope = trial.difference(
        lambda h: trial.respond(trial.atoms, ("polarization",), h * direction).get("polarization"),
        FIELD_STEP[trial.dtype],
    )
    yield slope, alpha @ direction


def _forces(trial: Trial) -> Iterator[tuple[Any, Any]]:
    direction = trial.direction()
    slope = trial.difference(
        lambda h: trial.respond(trial.moved(h * direction), ("energy",)).get("energy"), DISPLACEMENT[trial.dtype]
    )
    yield -slope, np.sum(trial.respond(trial.atoms, ("energy", "forces")).get("forces") * direction)


IDENTITIES: tuple[Identity, ...] = (
    Identity("acoustic_sum_rule", "Σ_κ Z*_κ = 0", "e", 1.0, True, _sum_rule),
    Identity("symmetric_polarizability", "α = αᵀ", "e/(V·Å)", 1e-4, True, _symmetric),
    Identity("supercell", "P(supercell) = P(cell)", "e/Å²", 1e-4, True, _supercell),
    Identity("rotated_born_charges", "Z*(QR) = Q Z*(R) Qᵀ", "e", 1e-2, True, _rotated_charges),
    Identity("rotated_polarization", "P(QR) = Q P(R)", "e/Å²", 1e-4, True, _rotated_polarization),
    Identity("rotated_polarizability", "α(QR) = Q α(R) Qᵀ", "e/(V·Å)", 1e-4, True, _rotated_polarizability),
    Identity("born_charges_are_derivatives", "Z*_κ,ij = Ω ∂P_i/∂u_κj", "e", 1e-2, False, _born_charges),
    Identity("polarizability_is_a_derivative", "α_ij = ∂P_i/∂𝓔_j", "e/(V·Å)", 1e-4, False, _polarizability),
    Identity("forces_are_derivatives", "F = −∂E/∂u", "eV/Å", 1e-2, False, _forces),
)
"""What is tried, in this order."""


def _orthogonal(generator: np.random.Generator) -> FloatArray:
    """Return a random orthogonal matrix with determinant −1, so that inversion is tried along with rotation."""
    q, r = np.linalg.qr(generator.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return -q if np.linalg.det(q) > 0 else q


def choose_frames(frames: Sequence[LabeledFrame], number: int, seed: int) -> list[LabeledFrame]:
    """Return a random choice of frames, small ones if there are any, in the order of the dataset."""
    small = [frame for frame in frames if 2 <= len(frame) <= MAX_ATOMS] or sorted(frames, key=len)[:number]
    generator = np.random.default_rng([seed, 1])
    chosen = generator.choice(len(small), size=min(number, len(small)), replace=False)
    return [small[i] for i in sorted(chosen.tolist())]


def check_identities(
    model: FieldModel, frames: Sequence[LabeledFrame], number: int = 3, seed: int = 0
) -> list[IdentityCheck]:
    """Try every identity on a few displaced frames and return the worst deviation of each, with a verdict.

    A deviation counts relative to the largest component of what is compared, and passes up to a tolerance that
    depends on whether the identity holds to rounding, and on the floating point type of the model.

    Args:
        model: Any model.
        frames: Frames that it can evaluate.
        number: How many of them are tried.
        seed: Seed of the choice, the displacements, rotations and directions.
    """
    dtype = model.info.dtype if model.info.dtype in FINE else "float64"
    chosen = choose_frames(frames, number, seed)
    trials = []
    for k, frame in enumerate(chosen):
        generator = np.random.default_rng([seed, 2, k])
        atoms = frame.atoms.copy()
        atoms.positions += generator.uniform(-RATTLE, RATTLE, size=atoms.positions.shape)
        trials.append((frame.name, Trial(model, atoms, generator, dtype)))
    return [_check(identity, trials, dtype) for identity in IDENTITIES]


def _check(identity: Identity, trials: Sequence[tuple[str, Trial]], dtype: str) -> IdentityCheck:
    tolerance = (FINE if identity.exact else COARSE)[dtype]
    facts: dict[str, Any] = {
        "name": identity.name,
        "formula": identity.formula,
        "unit": identity.unit,
        "tolerance": tolerance,
    }
    worst: tuple[float, float, str] | None = None
    reason, tried = "no frame to try it on", 0
    for name, trial in trials:
        try:
            deviation = _deviation(identity, trial)
        except FieldflowsError as error:
            reason = str(error)
            continue
        except Exception as error:  # a foreign backend may raise anything: the comparison with labels is worth keeping
            reason = f"{type(error).__name__}: {error}"
            continue
        tried += 1
        if worst is None or not deviation[1] <= worst[1]:
            worst = (*deviation, name)
    if worst is None:
        return IdentityCheck(**facts, frames=0, reason=reason)
    finite = np.isfinite(worst[0]) and np.isfinite(worst[1])
    return IdentityCheck(
        **facts,
        frames=tried,
        residual=worst[0] if finite else None,
        relative=worst[1] if finite else None,
        worst_frame=worst[2],
        passed=bool(finite and worst[1] <= tolerance),
        reason="" if finite else "the deviation is not finite",
    )


def _deviation(identity: Identity, trial: Trial) -> Deviation:
    absolute, relative = [], []
    for found, expected in identity.deviation(trial):
        difference = np.abs(np.asarray(found) - np.asarray(expected)).max()
        absolute.append(float(difference))
        relative.append(float(difference / np.fmax(np.abs(expected).max(), identity.floor)))
    return float(np.max(absolute)), float(np.max(relative))  # NaN stays NaN, unlike with max()
