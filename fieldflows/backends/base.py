"""What a model is to the rest of the package: responses out of structures, and a card that says what it knows.

A backend is any object with the methods of :class:`FieldModel`.  Loaders are registered under a name, in the
entry point group ``fieldflows.backends``; :func:`load_model` picks one by what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.errors import CapabilityError, CheckpointError, EvaluationError, SettingsError, suggestion
from fieldflows.observables import (
    ELECTRONIC_OBSERVABLES,
    ENERGY_SURFACE_LABELS,
    ENERGY_SURFACE_OBSERVABLES,
    FIRST_ORDER_OBSERVABLES,
    OBSERVABLES,
    get_observable,
)

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Directions:
    """Along which directions the second derivatives of one structure are taken.

    Attributes:
        field: (k, 3) field directions v_k, for v_k·Z* and α·v_k.
        displacements: (m, n, 3) displacements w_l of all atoms, for H w_l; None where no Hessian is asked for.
    """

    field: FloatArray
    displacements: FloatArray | None = None


@dataclass(frozen=True)
class SymmetryUse:
    """How the symmetry of a crystal was used for its response (see :mod:`fieldflows.backends.symmetric`).

    Attributes:
        space_group: International number of the group that was used.
        n_operations: Operations on the cell that was evaluated.
        n_field_directions: Field directions that were differentiated, instead of 3.
        n_displacements: Displacements that were differentiated, instead of 3n; 0 without a Hessian.
        max_shift: Largest displacement of an atom by the symmetrization, in Å.
        strain: Largest component of the strain of the cell by the symmetrization.
        force_change: Largest change of a force component by the symmetrization in eV/Å; None where it was too small
            a change to look.
        representatives: (m,) atoms of the structure that form the cell that was evaluated.
        mapping: (n,) for each atom, the one of those that it is a periodic image of.
        cell: (3, 3) lattice vectors of the cell that was evaluated, rows, in Å, in the frame of the structure.
        positions: (m, 3) positions of those atoms after symmetrization, in Å.
    """

    space_group: int
    n_operations: int
    n_field_directions: int
    n_displacements: int
    max_shift: float
    strain: float
    force_change: float | None
    representatives: NDArray[np.intp]
    mapping: NDArray[np.intp]
    cell: FloatArray
    positions: FloatArray


@dataclass(frozen=True)
class Response:
    """Observables of one structure at one field, in internal units (see :mod:`fieldflows.observables`).

    Attributes that were not asked for are None.  All arrays are float64.

    Attributes:
        energy: Electric enthalpy F in eV.
        forces: (n, 3) in eV/Å.
        stress: (3, 3) in eV/Å³, ASE sign, at fixed Cartesian field.
        polarization: (3,) in e/Å².
        born_effective_charges: (n, 3, 3) in e; first index polarization, second displacement.
        polarizability: (3, 3) in e/(V·Å), per volume.
        hessian: (3n, 3n) in eV/Å², ordered atom by atom, x, y, z.
        field: (3,) the electric field at which all this holds, V/Å.
        symmetry: How symmetry was used, if it was.  The Hessian may then be that of the primitive cell, of the
            atoms ``symmetry.representatives``.
    """

    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    polarization: FloatArray | None = None
    born_effective_charges: FloatArray | None = None
    polarizability: FloatArray | None = None
    hessian: FloatArray | None = None
    field: FloatArray = field(default_factory=lambda: np.zeros(3))
    symmetry: SymmetryUse | None = None

    def get(self, name: str) -> Any:
        """Return an observable by name.

        Raises:
            SettingsError: If the name is unknown.
            EvaluationError: If it was not evaluated.
        """
        value = getattr(self, get_observable(name).name)
        if value is None:
            have = [key for key in OBSERVABLES if getattr(self, key) is not None]
            raise EvaluationError(
                f"{name} was not evaluated; this response holds {', '.join(have) or 'nothing'}.",
                f"Pass observables=(..., {name!r}) to evaluate().",
            )
        return value


@dataclass(frozen=True)
class ModelInfo:
    """The card of a model.

    Attributes:
        name: Short name.
        backend: Name of the backend that made it.
        sha256: Hash of the checkpoint file, or of its serialization if it lives in memory only.
        elements: Chemical symbols that it accepts.
        trained_labels: Observables that it was trained on, by name.
        heads: Names of the heads; the first is the default.
        head: The head that is evaluated; "" for the default.
        cutoff: Interaction cut-off in Å.
        dtype: "float32" or "float64", of the evaluation.
        license: License of the weights.
        provenance: Anything else that the checkpoint says about its origin (JSON types).
    """

    name: str
    backend: str
    sha256: str
    elements: tuple[str, ...]
    trained_labels: tuple[str, ...]
    heads: tuple[str, ...] = ("Default",)
    cutoff: float = 0.0
    dtype: str = "float64"
    license: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    head: str = ""

    @property
    def chosen_head(self) -> str | None:
        """The head that is evaluated, if it is not the default one."""
        return None if not self.head or self.head == self.heads[0] else self.head

    @property
    def has_energy_surface(self) -> bool:
        """Whether the model was trained on energies and forces."""
        return set(self.trained_labels) >= ENERGY_SURFACE_LABELS

    def require(self, observables: Sequence[str], purpose: str = "") -> None:
        """Raise unless the training labels support the observables.

        Energy, forces, stress and Hessian need labels of energies and forces.  The derivatives by the field
        need at least one of polarization, Born charges and polarizability.

        Raises:
            CapabilityError: Names what is missing and what can be done.
        """
        wanted = [name for name in observables if name in ENERGY_SURFACE_OBSERVABLES]
        what = f" ({purpose})" if purpose else ""
        if wanted and not self.has_energy_surface:
            raise CapabilityError(
                f"Model {self.name!r} was trained on {', '.join(self.trained_labels) or 'no labels'}; "
                f"{', '.join(wanted)}{what} need one trained on energy and forces.",
                "Give a separate hessian_model that was (a foundation MACE, say), or ask for electronic quantities.",
            )
        wanted = [name for name in observables if name in ELECTRONIC_OBSERVABLES]
        if wanted and not set(self.trained_labels) & set(ELECTRONIC_OBSERVABLES):
            raise CapabilityError(
                f"Model {self.name!r} was trained on {', '.join(self.trained_labels) or 'no labels'}, not on any "
                f"response to a field; {', '.join(wanted)}{what} would be meaningless.",
                "Train it on polarization, Born charges or polarizability first.",
            )


@runtime_checkable
class FieldModel(Protocol):
    """A model of the electric enthalpy F(R, 𝓔)."""

    @property
    def info(self) -> ModelInfo:
        """The card of the model."""
        ...

    @overload
    def evaluate(
        self, structures: StructureLike, fields: ArrayLike | None = None, observables: Sequence[str] = ...
    ) -> Response: ...

    @overload
    def evaluate(
        self,
        structures: Sequence[StructureLike],
        fields: ArrayLike | None = None,
        observables: Sequence[str] = ...,
    ) -> list[Response]: ...

    def evaluate(self, structures, fields=None, observables=ELECTRONIC_OBSERVABLES):  # type: ignore[no-untyped-def]
        """Return the response of one structure, or a list of them for a list of structures.

        This is the calculation as asked, with no judgment: whether the model was trained for it is checked by
        :meth:`ModelInfo.require` where properties are planned.

        Args:
            structures: An ``ase.Atoms`` or pymatgen ``Structure``, or a sequence of them.
            fields: (3,) for all or (len(structures), 3), in V/Å; zero by default.
            observables: Names from :data:`fieldflows.observables.OBSERVABLES`.

        Raises:
            StructureError: If a structure cannot be computed.
            UnknownElementError: If it holds an element that the model does not know.
            EvaluationError: If a result is not finite.
        """
        ...


@runtime_checkable
class DirectionalModel(FieldModel, Protocol):
    """A model that takes second derivatives along given directions, and that isolates what fails."""

    def evaluate_along(
        self,
        structures: Sequence[StructureLike],
        fields: ArrayLike | None,
        observables: Sequence[str],
        directions: Sequence[Directions] | None = None,
    ) -> list[Response | Exception]:
        """Return a response or an error for each structure.

        Args:
            structures: Crystals.
            fields: As in :meth:`FieldModel.evaluate`.
            observables: Names.
            directions: One per structure.  The responses then hold products with them: born_effective_charges
                (n, k, 3) = Σ_i v_ki Z*[κ, i, j], polarizability (k, 3) = α·v_k and hessian (m, n, 3) = H w_l.
                None: the full tensors.
        """
        ...


@runtime_checkable
class DescribingModel(FieldModel, Protocol):
    """A model that tells what it sees in a crystal as numbers that do not turn with it."""

    def descriptors(self, structures: Sequence[StructureLike]) -> list[FloatArray | Exception]:
        """Return invariant features of each crystal, arrays of one length, or its error."""
        ...


class Stepper(Protocol):
    """Evaluates one crystal after the other, fast if they are steps of one trajectory."""

    def evaluate(
        self, atoms: Atoms, field: ArrayLike | None = None, observables: Sequence[str] = FIRST_ORDER_OBSERVABLES
    ) -> Response:
        """Return what :meth:`FieldModel.evaluate` returns, for observables of first order."""
        ...


@runtime_checkable
class SteppingModel(FieldModel, Protocol):
    """A model that has something faster than :meth:`FieldModel.evaluate` for dynamics and relaxations."""

    def stepper(self) -> Stepper:
        """Return an evaluator of the steps of one trajectory."""
        ...


class BackendLoader(Protocol):
    """A callable that turns a name or the path of a file into a model; returns None if it does not recognize it.

    It is called with ``head`` only if a head was asked for.
    """

    def __call__(self, name: str, *, dtype: str, device: str, head: str | None = None) -> FieldModel | None:
        """Return the model of that name or path, or None."""
        ...


_CACHE: dict[tuple[str, str, str, str | None], FieldModel] = {}


def load_model(name: str | Path, *, head: str | None = None, dtype: str = "float64", device: str = "cpu") -> FieldModel:
    """Return a model by name, path, hash or address; loaded once per process.

    Loading executes nothing that the file contains.  What comes from elsewhere is verified by its hash first.

    Args:
        name: ``"path/model.safetensors"``; ``"sha256:..."`` with the hash, or its first digits (8 at least) if they
            are unambiguous; ``"https://host/model.safetensors#sha256=..."``; ``"dielectric"`` (bundled);
            ``"my-model"`` or ``"my-model@2"`` (registered, see :mod:`fieldflows.models.registry`); ``"toy"``.
        head: Head of a model with several; the first by default.
        dtype: ``"float64"`` or ``"float32"``.
        device: A torch device, such as ``"cpu"`` or ``"cuda"``.

    Raises:
        CheckpointError: If nothing of that name exists, or the file is truncated, altered or foreign.
        ArtifactError: If a file cannot be fetched, or is not the expected one.
        SettingsError: If dtype is neither of the two, or the model has no such head.
    """
    if dtype not in ("float32", "float64"):
        raise SettingsError(f"dtype must be float32 or float64, found {dtype!r}.")
    from fieldflows.models.find import known_names, locate

    text = str(name)
    points = sorted(entry_points(group="fieldflows.backends"), key=lambda item: (item.name != text, item.name))
    found = locate(text) if Path(text).is_file() or all(point.name != text for point in points) else None
    stamp = ""
    if found is not None:
        status = found.stat()
        text, stamp = str(found), f"@{status.st_mtime_ns}:{status.st_size}"
    key = (text + stamp, dtype, device, head)
    if key not in _CACHE:
        options = {"dtype": dtype, "device": device} | ({} if head is None else {"head": head})
        # A backend of that very name is asked first, and the others are imported only if it does not know the model.
        for point in points:
            model = point.load()(text, **options)
            if model is not None:
                _CACHE[key] = model
                break
        else:
            raise CheckpointError(f"No model {text!r}: no such file or name.", suggestion(text, known_names()))
    return _CACHE[key]
