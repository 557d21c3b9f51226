"""What a property is: a plan of evaluations, and an analysis of the answers into one document.

A property knows no model and no workflow engine.  :func:`fieldflows.properties.run.run_property` carries it out
for many structures at once; jobs and flows wrap that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.schemas.common import Document
from fieldflows.schemas.identity import document_key, settings_hash, structure_hash
from fieldflows.schemas.provenance import ModelCard, Provenance, Relaxation

if TYPE_CHECKING:
    from fieldflows.structures import StructureLike

Role = Literal["field", "hessian"]


@dataclass(frozen=True)
class Evaluation:
    """One question to a model.

    Attributes:
        structure: The crystal.
        observables: What to compute.
        field: (3,) electric field in V/Å.
        role: "field" for the model of the field response; "hessian" for the model of the energy surface, which is
            the same one unless a separate ``hessian_model`` is given.
        symmetry: Use the symmetry of the crystal where it is this close to it; a Hessian is then that of the
            primitive cell (``response.symmetry``).  None: never.
    """

    structure: StructureLike
    observables: tuple[str, ...]
    field: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    role: Role = "field"
    symmetry: SymmetrySettings | None = None


@dataclass(frozen=True)
class Plan:
    """All evaluations that one structure needs; the responses come back in this order."""

    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class PropertyInput:
    """One crystal with what is known about it.

    Attributes:
        structure: The crystal to compute.
        material_id: Identifier of the material.
        source: File or database entry that it came from.
        index: Position in the user's input.
        band_gap: Band gap in eV from elsewhere; 0 for a metal.
        relaxation: How the structure was relaxed, if it was.
        input_structure: The structure before that relaxation; the document key is made from it.
        reference: What a database says of the material; the document shows it beside the result.
    """

    structure: StructureLike
    material_id: str | None = None
    source: str | None = None
    index: int | None = None
    band_gap: float | None = None
    relaxation: Relaxation | None = None
    input_structure: StructureLike | None = None
    reference: Document | None = None


@dataclass(frozen=True)
class Context:
    """What an analysis may know besides structure and responses.

    Attributes:
        subject: The input.
        model: Card of the model of the field response.
        hessian_model: Card of the separate model of the energy surface, if there is one.
        extra_settings: Settings of the steps around the property (a relaxation, say), in JSON types.
        seed: Seed of random numbers, if any were drawn.
    """

    subject: PropertyInput
    model: ModelCard
    hessian_model: ModelCard | None = None
    extra_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None


class Property(Protocol):
    """A property of a crystal that follows from responses of a model.

    A property whose documents can hold more or less of the same computation also has what :class:`Extensible` names.
    """

    @property
    def name(self) -> str:
        """Name of the task, as stored in documents."""
        ...

    @property
    def document(self) -> type[Document]:
        """Class of the documents."""
        ...

    @property
    def schema_version(self) -> int:
        """Version of the documents."""
        ...

    def settings_dict(self) -> dict[str, Any]:
        """Return all settings in JSON types."""
        ...

    def bind(self, model: ModelInfo, hessian_model: ModelInfo | None = None) -> Property:
        """Return the property for these models, with everything "auto" decided.

        Raises:
            CapabilityError: If the models cannot give what the settings ask for.
        """
        ...

    def plan(self, structure: StructureLike) -> Plan:
        """Return what must be evaluated for one structure; only after :meth:`bind`.

        Raises:
            StructureError: If the structure cannot be computed.
        """
        ...

    def analyse(self, structure: StructureLike, responses: Sequence[Response], context: Context) -> Document:
        """Return the document of one structure, from the responses in the order of the plan."""
        ...


@runtime_checkable
class Extensible(Protocol):
    """What a property has if a document may hold a part of what it can give, and be extended later under its key."""

    cover_fields: ClassVar[tuple[str, ...]]
    """Fields of the document that :meth:`covers` looks at."""

    @property
    def extent(self) -> str:
        """Name of the part that is asked for."""
        ...

    def key_settings(self) -> dict[str, Any]:
        """Return the settings that tell results apart, in JSON types: all but those that name the part."""
        ...

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Return whether a stored document holds what is asked for, by its ``cover_fields``."""
        ...


def extent_of(prop: Property) -> str | None:
    """Return the name of the part of its documents that a property is asked for; None if there are no parts."""
    return prop.extent if isinstance(prop, Extensible) else None


def covers(prop: Property, row: Mapping[str, Any]) -> bool:
    """Return whether a stored document, under the key of the result, holds all that is asked for."""
    return prop.covers(row) if isinstance(prop, Extensible) else True


def cover_fields(prop: Property) -> tuple[str, ...]:
    """Return the fields of a stored document that :func:`covers` needs."""
    return prop.cover_fields if isinstance(prop, Extensible) else ()


def model_card(model: Any) -> ModelCard:
    """Return the card of a model that results keep; the device is "cpu" unless the model says otherwise."""
    info: ModelInfo = model.info
    return ModelCard(
        name=info.name,
        sha256=info.sha256,
        backend=info.backend,
        trained_labels=tuple(info.trained_labels),
        dtype=info.dtype,
        device=str(getattr(model, "device", "cpu")),
        license=info.license,
    )


def full_settings_hash(
    prop: Property, model: ModelCard | ModelInfo, hessian_model: ModelCard | ModelInfo | None, extra: Mapping[str, Any]
) -> str:
    """Return the sha256 of everything besides structure and model that decides a result."""
    return settings_hash(
        {
            "settings": prop.key_settings() if isinstance(prop, Extensible) else prop.settings_dict(),
            "extra": dict(extra),
            "dtype": model.dtype,
            "hessian_model": None if hessian_model is None else [hessian_model.sha256, hessian_model.dtype],
        }
    )


def result_key(
    prop: Property,
    structure: StructureLike,
    model: ModelCard | ModelInfo,
    hessian_model: ModelCard | ModelInfo | None = None,
    extra_settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the key that the document of this input structure will have, before anything is computed.

    Args:
        prop: The bound property.
        structure: The structure as given, before any relaxation.
        model: Card or info of the model of the field response.
        hessian_model: Card or info of the separate model of the energy surface.
        extra_settings: Settings of the steps around the property, in JSON types.
    """
    digest = full_settings_hash(prop, model, hessian_model, extra_settings or {})
    return document_key(prop.name, structure_hash(structure), model.sha256, digest, prop.schema_version)


def provenance_of(prop: Property, structure: StructureLike, context: Context) -> Provenance:
    """Return the provenance of a result."""
    from fieldflows import __version__

    original = structure if context.subject.input_structure is None else context.subject.input_structure
    return Provenance(
        model=context.model,
        hessian_model=context.hessian_model,
        code_version=__version__,
        settings={**prop.settings_dict(), **dict(context.extra_settings)},
        settings_hash=full_settings_hash(prop, context.model, context.hessian_model, context.extra_settings),
        structure_hash=structure_hash(structure),
        input_structure_hash=structure_hash(original),
        seed=context.seed,
    )
