"""What all stored documents share: strict, frozen, a unit on every number, and plain JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pymatgen.core import Element, Lattice, Species, Structure

from fieldflows.errors import DataError
from fieldflows.schemas.migrations import migrated

DocumentT = TypeVar("DocumentT", bound="Document")


def _as_list(value: Any) -> Any:
    """Turn arrays into nested lists; leave everything else to pydantic."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


FrozenVector = tuple[float, float, float]
FrozenMatrix = tuple[FrozenVector, FrozenVector, FrozenVector]

Vector3 = Annotated[FrozenVector, BeforeValidator(_as_list)]
"""Three Cartesian components."""
Matrix3 = Annotated[FrozenMatrix, BeforeValidator(_as_list)]
"""A 3 x 3 Cartesian tensor, row by row."""
VectorList = Annotated[tuple[FrozenVector, ...], BeforeValidator(_as_list)]
"""One vector per atom or mode."""
MatrixList = Annotated[tuple[FrozenMatrix, ...], BeforeValidator(_as_list)]
"""One 3 x 3 tensor per atom."""
FloatList = Annotated[tuple[float, ...], BeforeValidator(_as_list)]
"""Any number of values."""


def quantity(unit: str, description: str, default: Any = ..., **constraints: Any) -> Any:
    """Return a pydantic field with a unit, which is "1" for pure numbers and counts."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **constraints)


def structure_to_dict(structure: Structure) -> dict[str, Any]:
    """Return a crystal as pymatgen's own dictionary, without site properties (they may hold anything)."""
    bare = structure.copy()
    for name in list(bare.site_properties):
        bare.remove_site_property(name)
    bare.properties = {}
    return bare.as_dict()


def structure_from_dict(value: Any) -> Structure:
    """Return a crystal from pymatgen's dictionary, reading nothing but lattice, species and coordinates.

    Site properties are ignored: pymatgen would decode them into whatever class they name.

    Raises:
        ValueError: If the dictionary is not that of a structure.
    """
    if isinstance(value, Structure):
        return value
    try:
        lattice = Lattice(np.array(value["lattice"]["matrix"], dtype=float), pbc=(True, True, True))
        species = [{_species(entry): float(entry["occu"]) for entry in site["species"]} for site in value["sites"]]
        coordinates = [[float(x) for x in site["abc"]] for site in value["sites"]]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a serialized pymatgen Structure: {type(error).__name__} {error}") from error
    if not (np.isfinite(lattice.matrix).all() and np.isfinite(coordinates).all()):
        raise ValueError("lattice and coordinates must be finite")
    return Structure(lattice, species, coordinates)


def _species(entry: Mapping[str, Any]) -> Element | Species:
    state = entry.get("oxidation_state")
    return Element(entry["element"]) if state is None else Species(entry["element"], float(state))


StructureField = Annotated[
    Structure,
    PlainValidator(structure_from_dict),
    PlainSerializer(structure_to_dict, return_type=dict),
    WithJsonSchema({"type": "object", "title": "Structure", "description": "pymatgen Structure.as_dict()"}),
]
"""A crystal: kept as pymatgen Structure, stored as its dictionary."""


class Document(BaseModel):
    """Base of everything that is stored: frozen, no extra fields, no NaN or infinity.

    :meth:`to_json_dict` and :meth:`from_json_dict` convert to and from plain JSON types; reading executes nothing
    and imports no class that the data name.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )

    latest_version: ClassVar[int | None] = None
    """Newest ``schema_version`` that this class reads; None for parts that carry none."""

    @model_validator(mode="before")
    @classmethod
    def _in_latest_version(cls, data: Any) -> Any:
        if cls.latest_version is None or not isinstance(data, Mapping):
            return data
        return migrated(cls.__name__, data, cls.latest_version)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the document in JSON types only."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json_dict(cls: type[DocumentT], data: Mapping[str, Any]) -> DocumentT:
        """Return the document from JSON types, as stored by :meth:`to_json_dict` or by a jobflow store.

        Keys that start with ``@`` (class names, as jobflow adds them) and ``_id`` are dropped.  Older schema versions
        become the latest one (:mod:`fieldflows.schemas.migrations`), in the parts of a document as well.

        Raises:
            DataError: If the data do not fit; names the fields, or the newer version that wrote them.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{cls.__name__} expects a mapping, found {type(data).__name__}.")
        version = data.get("schema_version")
        if cls.latest_version is not None and isinstance(version, int) and version > cls.latest_version:
            raise DataError(
                f"This {cls.__name__} has schema version {version}; this fieldflows reads up to {cls.latest_version}.",
                "Update fieldflows.",
            )
        try:
            return cls.model_validate(without_markers(data))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise DataError(
                f"This is no valid {cls.__name__}: {where}: {first['msg']} ({error.error_count()} errors in all).",
                "Read it with the version of fieldflows that wrote it.",
            ) from error


def without_markers(value: Any) -> Any:
    """Return plain data without what engines and databases add: keys that start with ``@``, and ``_id``."""
    if isinstance(value, Mapping):
        return {k: without_markers(v) for k, v in value.items() if not str(k).startswith("@") and k != "_id"}
    if isinstance(value, list | tuple):
        return [without_markers(item) for item in value]
    return value


class Flag(Document):
    """One thing that a reader of a result must know before using it."""

    code: str = Field(description="Machine-readable name, such as 'unstable' or 'residual_forces'.")
    message: str = Field(description="One sentence for people, with numbers and units.")
    value: float | None = quantity("as in message", "The number that raised the flag.", None)
    threshold: float | None = quantity("as in message", "The limit that it passed.", None)


def make_flag(code: str, message: str, value: Any = None, threshold: Any = None) -> Flag:
    """Return a flag, with None in place of numbers that are not finite."""
    return Flag(code=code, message=message, value=finite_or_none(value), threshold=finite_or_none(threshold))


def finite_or_none(value: Any) -> float | None:
    """Return the number as float, or None if it is missing, NaN or infinite."""
    if value is None:
        return None
    number = float(value)
    return number if np.isfinite(number) else None
