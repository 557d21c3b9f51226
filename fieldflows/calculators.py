"""An ASE calculator of the electric enthalpy, also for atomate2.

In atomate2::

    ForceFieldStaticMaker(
        force_field_name={"@module": "fieldflows.calculators", "@callable": "FieldCalculator"},
        calculator_kwargs={"model": "path/model.safetensors"},
    )
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import ArrayLike

from fieldflows.backends.base import FieldModel, Stepper, SteppingModel, load_model
from fieldflows.errors import InputError
from fieldflows.observables import FIRST_ORDER_OBSERVABLES

ElectricField = ArrayLike | Callable[[float], ArrayLike]


class FieldCalculator(Calculator):
    """ASE calculator: energy, free_energy, forces, stress, polarization, born_effective_charges, polarizability.

    Units: eV, eV/Å, eV/Å³ (Voigt xx, yy, zz, yz, xz, xy; ASE sign), e/Å², e and e/(V·Å); Born charges are
    (n, 3, 3) as [atom, polarization, displacement].  Only what is asked for is computed.  Along a trajectory the
    neighbor list is kept where the model offers it (:class:`fieldflows.backends.base.SteppingModel`), and the
    polarization comes with the forces once it has been asked for.

    Args:
        model: A bundled name, the path of a checkpoint, or a model; files are loaded once per process.
        electric_field: (3,) in V/Å, or a callable of the time in fs that returns it; see :attr:`time`.
        dtype: ``"float64"`` or ``"float32"``, if the model is given by name.
        device: Torch device, if the model is given by name.
        head: Head of a model with several, if it is given by name; the first by default.
        allow_untrained: Give energies and forces even if the model was not trained on them.

    Raises:
        CapabilityError: On calculation, if the model was not trained for what is asked.

    Example:
        >>> from ase.build import bulk
        >>> atoms = bulk("MgO", "rocksalt", a=4.21)
        >>> atoms.calc = FieldCalculator("toy")
        >>> atoms.calc.electric_field = (0.0, 0.0, 0.01)
        >>> atoms.get_forces().shape
        (2, 3)
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "polarization",
        "born_effective_charges",
        "polarizability",
    ]

    def __init__(
        self,
        model: str | Path | FieldModel,
        electric_field: ElectricField | None = None,
        *,
        dtype: str = "float64",
        device: str = "cpu",
        head: str | None = None,
        allow_untrained: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(model, str | Path):
            model = load_model(model, head=head, dtype=dtype, device=device)
        self.model = model
        self.allow_untrained = allow_untrained
        self._stepper: Stepper | None = self.model.stepper() if isinstance(self.model, SteppingModel) else None
        self._along: set[str] = set()
        self._time = 0.0
        self._field: ElectricField | None = None
        self.electric_field = electric_field

    @property
    def electric_field(self) -> ElectricField | None:
        """The applied field: (3,) in V/Å, a callable of the time in fs, or None."""
        return self._field

    @electric_field.setter
    def electric_field(self, value: ElectricField | None) -> None:
        self._field = value if value is None or callable(value) else _vector(value)
        self.reset()

    @property
    def time(self) -> float:
        """Time in fs that a time-dependent field is evaluated at; set it before the force call of a step."""
        return self._time

    @time.setter
    def time(self, value: float) -> None:
        self._time = float(value)
        if callable(self._field):
            self.reset()

    def current_field(self) -> np.ndarray:
        """Return the field at the present time, (3,) in V/Å."""
        if self._field is None:
            return np.zeros(3)
        return _vector(self._field(self._time) if callable(self._field) else self._field)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return a property; results at hand for the same structure are kept when another one is asked for."""
        self._keep = dict(self.results) if atoms is not None and not self.check_state(atoms) else {}
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        """Evaluate the model (called by ASE)."""
        super().calculate(atoms, properties, system_changes)
        asked = {"energy" if name == "free_energy" else name for name in properties or ["energy"]}
        if asked & {"energy", "forces", "stress"}:
            # one backward pass gives them all, and relaxations ask for each of them in turn
            asked |= {"energy", "forces", "stress"}
            # and so does the polarization, where it has been asked for along the trajectory
            asked |= self._along
        observables = tuple(sorted(asked))
        if not self.allow_untrained:
            self.model.info.require(observables, "asked of the calculator")
        if self._stepper is not None and asked <= set(FIRST_ORDER_OBSERVABLES):
            self._along = asked & {"polarization"} or self._along
            response = self._stepper.evaluate(self.atoms, self.current_field(), observables)
        else:
            response = self.model.evaluate(self.atoms, self.current_field(), observables)
        self.results = dict(getattr(self, "_keep", {}))
        for name in observables:
            value = response.get(name)
            if name == "stress":
                value = full_3x3_to_voigt_6_stress(value)
            self.results[name] = value
        if "energy" in self.results:
            self.results["free_energy"] = self.results["energy"]


def _vector(value: ArrayLike) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise InputError(
            f"An electric field needs three finite components in V/Å, found {value!r}.",
            "For example electric_field=(0, 0, 0.01), which is 1 MV/cm along z.",
        )
    return array
