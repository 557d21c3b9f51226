"""The refractive index of many crystals by any model of the field response, pooled; what fails costs that row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldflows.backends.base import FieldModel, ModelInfo, Response
from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.errors import EvaluationError
from fieldflows.physics.dielectric import electronic_permittivity
from fieldflows.physics.optics import principal_permittivities, refractive_index
from fieldflows.properties.base import Context, Evaluation, Plan, PropertyInput
from fieldflows.properties.run import run_property
from fieldflows.schemas.common import Document, Vector3, quantity
from fieldflows.structures import StructureLike, check_structure

LEAST_INDEX = 1.0
"""No crystal without gain has a smaller n; a smaller prediction is raised to it."""

Progress = Callable[[int, int], None]


class IndexDocument(Document):
    """The refractive index of one crystal."""

    n: float = quantity("1", "n = √(tr ε∞/3), 1 at least.")
    principal: Vector3 = quantity("1", "Eigenvalues of ε∞, ascending.")


@dataclass(frozen=True)
class IndexProperty:
    """Plan and analysis of n alone: one evaluation of α, and n = √(tr ε∞/3) with ε∞ = I + α/ε_vac.

    Martin et al., PRX Intelligence 1, 013006 (2026), Eqs. 19 to 21.  Born charges and modes, which the dielectric
    property computes besides, are left out.

    Attributes:
        symmetry: Use the symmetry of crystals.
    """

    symmetry: bool = True
    name: str = field(default="refractive_index", init=False)
    document: type[Document] = field(default=IndexDocument, init=False)
    schema_version: int = field(default=1, init=False)

    def settings_dict(self) -> dict[str, Any]:
        """Return all settings in JSON types."""
        return {"symmetry": self.symmetry}

    def bind(self, model: ModelInfo, hessian_model: ModelInfo | None = None) -> IndexProperty:
        """Return the property itself if the model knows a response to fields.

        Raises:
            CapabilityError: If it does not.
        """
        model.require(("polarizability",), "the refractive index")
        return self

    def plan(self, structure: StructureLike) -> Plan:
        """Return the evaluation of α for one structure.

        Raises:
            StructureError: If the structure cannot be computed.
        """
        check_structure(structure)
        settings = SymmetrySettings() if self.symmetry else None
        return Plan((Evaluation(structure, ("polarizability",), symmetry=settings),))

    def analyse(self, structure: StructureLike, responses: Sequence[Response], context: Context) -> IndexDocument:
        """Return n and the principal values of ε∞.

        Raises:
            EvaluationError: If tr ε∞ is negative, so that there is no n.
        """
        epsilon = electronic_permittivity(responses[0].get("polarizability"))
        index = refractive_index(epsilon)
        if not np.isfinite(index):
            raise EvaluationError(
                f"tr ε∞/3 = {np.trace(epsilon) / 3:.3g} is negative: there is no refractive index.",
                "The crystal is probably far from anything that the model was trained on.",
            )
        return IndexDocument(n=max(index, LEAST_INDEX), principal=principal_permittivities(epsilon))


@dataclass(frozen=True)
class Prediction:
    """What a model says of one crystal.

    Attributes:
        n: Refractive index; None where the model gives none.
        principal: (3,) eigenvalues of ε∞, ascending.
        reason: Why there is no number.
    """

    n: float | None
    principal: NDArray[np.float64] | None = None
    reason: str = ""


def predict_indices(
    model: FieldModel, structures: Sequence[StructureLike], symmetry: bool = True, progress: Progress | None = None
) -> list[Prediction]:
    """Return a prediction for each crystal, in their order; those that fail say why.

    Args:
        model: Any model of the field response.
        structures: The crystals.
        symmetry: Evaluate symmetric crystals by their primitive cells and few directions.
        progress: Called with the number of crystals done and in all.

    Raises:
        CapabilityError: If the model knows no response to fields.
    """
    found = run_property(
        IndexProperty(symmetry),
        [PropertyInput(structure, index=number) for number, structure in enumerate(structures)],
        model,
        progress=progress,
    )
    return [
        Prediction(outcome.n, np.array(outcome.principal))
        if isinstance(outcome, IndexDocument)
        else Prediction(None, reason=str(getattr(outcome, "message", "it failed")))
        for outcome in found
    ]
