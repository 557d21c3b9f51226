"""What is minimized, as a configuration says it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fieldflows.errors import suggestion
from fieldflows.observables import OBSERVABLES
from fieldflows.training.section import Section
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM, EV_PER_A3_TO_GPA

TRAINABLE_LABELS: tuple[str, ...] = tuple(name for name in OBSERVABLES if name != "hessian")
"""Observables that can be trained on."""

LABEL_UNITS: dict[str, dict[str, float]] = {
    "energy": {"eV": 1.0, "meV": 1e-3},
    "forces": {"eV/Å": 1.0, "meV/Å": 1e-3},
    "stress": {"eV/Å³": 1.0, "meV/Å³": 1e-3, "GPa": 1 / EV_PER_A3_TO_GPA, "kbar": 0.1 / EV_PER_A3_TO_GPA},
    "polarization": {"e/Å²": 1.0, "µC/cm²": 1 / E_PER_A2_TO_UC_PER_CM2},
    "born_effective_charges": {"e": 1.0},
    "polarizability": {"e/(V·Å)": 1.0, "ε∞": EPSILON_VACUUM},
}
"""Units of a scale by observable, as factors to the internal unit (the first); energies are per atom."""

PUBLIC_TERMS: dict[str, dict[str, Any]] = {
    "energy": {"delta": 0.01},
    "forces": {"kind": "force huber", "delta": 0.01, "normalization": "atoms"},
    "stress": {"delta": 0.01},
    "polarization": {"kind": "quantum metric"},
    "born_effective_charges": {"delta": 0.01, "normalization": "atoms"},
    "polarizability": {"delta": 0.01},
}
"""What a term leaves open, as the loss ``universal_field`` of the public MACE-Field code fills it in."""


class Term(Section):
    """The loss of one observable."""

    weight: float | Literal["auto"] = Field(
        1.0,
        description="Weight λ in the sum; 'auto': such that the loss of a trivial prediction is `share` "
        "(docs/guides/losses.md).",
        json_schema_extra={"unit": "1"},
    )
    share: float = Field(
        1.0,
        gt=0,
        description="Part of the loss of a trivial prediction, for weight: auto.",
        json_schema_extra={"unit": "1"},
    )
    kind: Literal["huber", "l1", "mse", "force huber", "quantum metric"] = Field(
        "huber",
        description="Function of the error of one component. 'force huber' (forces): δ is 0.7, 0.4 and 0.1 of its "
        "value from labels of 100, 200 and 300 eV/Å on. 'quantum metric' (polarization): squared distance in quanta.",
    )
    delta: float = Field(
        0.1,
        gt=0,
        description="Error at which the Huber function turns from quadratic to linear, in units of the scale.",
    )
    scale: float | str = Field(
        1.0,
        description="Errors are divided by this before the loss: a number in the unit of the observable; a number with "
        "a unit such as '30 meV/Å', '0.05 µC/cm²' or '0.05 ε∞' (energies per atom); 'spread', the standard deviation "
        "of the training labels; or 'spread by element' (only for observables per atom).",
    )
    normalization: Literal["structures", "atoms", "printed"] = Field(
        "structures",
        description="'structures': mean over the components of each frame, then the weighted mean over the frames "
        "(W = Σ_g w_g); 'atoms': every atom counts the same; 'printed': Eq. 31 to the letter, which divides by the "
        "atoms twice (the last two only for observables per atom).",
    )
    count_unlabeled: bool = Field(
        False, description="Count frames without the label in W, as public code does; it makes rare labels weigh less."
    )

    @field_validator("weight")
    @classmethod
    def _not_negative(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value < 0:
            raise ValueError("weight must not be negative")
        return value

    @field_validator("scale")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value <= 0:
            raise ValueError("scale must be positive, or 'spread'")
        return value

    @property
    def trained(self) -> bool:
        """Whether the weight is not zero."""
        return self.weight == "auto" or float(self.weight) > 0


def parse_scale(observable: str, scale: float | str) -> float | str:
    """Return a scale as a number in the internal unit, or as "spread" or "spread by element".

    Args:
        observable: Its name.
        scale: A number, a number with a unit, or one of the two words.

    Raises:
        ValueError: If it is neither, or the unit is not one of the observable.

    Example:
        >>> parse_scale("forces", "30 meV/Å")
        0.03
    """
    if not isinstance(scale, str) or scale in ("spread", "spread by element"):
        return scale
    found = re.fullmatch(r"\s*([-+0-9.eE]+?)\s+(\S+)\s*", scale)
    units = LABEL_UNITS.get(observable, {})
    unit = found[2].replace("μ", "µ").replace("Angstrom", "Å") if found else ""
    if found is None or unit not in units:
        known = ", ".join(f"'0.01 {name}'" for name in units)
        raise ValueError(
            f"the scale of {observable} must be a number, 'spread', 'spread by element' or a number with its unit "
            f"({known}), found {scale!r}"
        )
    try:
        number = float(found[1])
    except ValueError:
        raise ValueError(f"the scale of {observable} is no number: {scale!r}") from None
    if not number > 0:
        raise ValueError(f"the scale of {observable} must be positive, found {scale!r}")
    return number * units[unit]


class LossSection(Section):
    """One term per observable; an observable without a term is not trained on."""

    terms: dict[str, Term] = Field(
        default_factory=lambda: {
            "born_effective_charges": Term(weight=1.0, scale="spread"),
            "polarizability": Term(weight=1.0, scale="spread"),
        },
        description="Observable to term. Polarization errors are folded into one quantum cell of the frame.",
    )
    directions: Literal["all", "random"] = Field(
        "all",
        description="What of Z* and α is compared in a training step. 'all': the whole tensors, from one to three "
        "second derivatives by symmetry (run.symmetry). 'random': their products with one random direction per frame "
        "and step, from one second derivative whatever the symmetry; for 'mse' the mean is the full loss.",
    )
    variant: Literal["public"] | None = Field(
        None,
        description="'public': what terms leave open is filled in as the loss universal_field of the public MACE-Field "
        "code has it (docs/guides/losses.md); None: as described for a term.",
    )
    sum_rule_scale: float | None = Field(
        None,
        gt=0,
        description="Weight the Z* of a frame by 1/(1 + (r/r₀)²) with this r₀ and the largest component r of the mean "
        "Σ_κ Z*_κ/n of its labels before cleaning, which is zero for sound labels; None: all the same.",
        json_schema_extra={"unit": "e"},
    )

    @model_validator(mode="before")
    @classmethod
    def _variant(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("variant") != "public" or not isinstance(data.get("terms"), dict):
            return data
        terms = {
            name: {**PUBLIC_TERMS.get(name, {}), "count_unlabeled": True, **term} if isinstance(term, dict) else term
            for name, term in data["terms"].items()
        }
        return {**data, "terms": terms}

    @field_validator("terms")
    @classmethod
    def _known(cls, value: dict[str, Term]) -> dict[str, Term]:
        for name, term in value.items():
            if name not in TRAINABLE_LABELS:
                raise ValueError(f"no loss for {name!r}. " + suggestion(name, TRAINABLE_LABELS))
            _check(name, term)
        if not any(term.trained for term in value.values()):
            raise ValueError("at least one term needs a positive weight")
        return value

    @property
    def labels(self) -> tuple[str, ...]:
        """Observables with a positive weight, in the order of the glossary."""
        return tuple(name for name in TRAINABLE_LABELS if name in self.terms and self.terms[name].trained)


def _check(name: str, term: Term) -> None:
    """Raise ValueError if a term does not go with an observable."""
    parse_scale(name, term.scale)
    if term.normalization != "structures" and not OBSERVABLES[name].per_atom:
        raise ValueError(f"{name} is not an observable per atom: its normalization must be 'structures'")
    if term.scale == "spread by element" and not OBSERVABLES[name].per_atom:
        raise ValueError(f"{name} is not an observable per atom: it has no 'spread by element'")
    for kind, only in (("force huber", "forces"), ("quantum metric", "polarization")):
        if term.kind == kind and name != only:
            raise ValueError(f"{name} has no {kind!r}: it is for {only}")
    if term.kind == "quantum metric" and isinstance(term.scale, str):
        raise ValueError("the quantum metric is a distance in quanta: its scale must be a plain number")
