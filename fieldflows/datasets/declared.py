"""Files of unknown origin: the user declares which key holds what, in which convention; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fieldflows.datasets.consistency import require_consistent
from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.labels import ALIASES, find_key, get_convention
from fieldflows.datasets.plausibility import check_magnitudes
from fieldflows.datasets.source import Source, SourceData, label_frames, largest_field, refuse_field
from fieldflows.errors import LabelError, SettingsError

_UNSAFE = re.compile(r"[^\w.:+-]+")


class LabelDeclaration(BaseModel):
    """Which key of a file holds an observable, and how it is written there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    convention: str = Field(description="Unit, sign and index order, by name.")
    key: str = Field(default="", description="Key in the file; the usual spellings are tried if empty.")


class DeclaredSource(Source):
    """Base of sources whose labels are declared."""

    labels: dict[str, LabelDeclaration] = Field(
        description="Declaration by observable; a bare string is the convention.", min_length=1
    )
    identifier: str = Field(
        default="",
        description='Key of an identifier, kept with the frame as extra["identifier"], such as task_id:mp-1.',
    )
    field: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="What to do with frames that declare an electric field: refuse, or ignore the tag as spurious.",
    )
    is_trajectory: bool = Field(default=False, description="Neighboring frames are alike on purpose.")

    @model_validator(mode="before")
    @classmethod
    def _bare_strings(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("labels"), dict):
            labels = {
                name: {"convention": item} if isinstance(item, str) else item for name, item in data["labels"].items()
            }
            data = {**data, "labels": labels}
        return data

    @model_validator(mode="after")
    def _conventions_exist(self) -> DeclaredSource:
        for observable, declaration in self.labels.items():
            try:
                get_convention(observable, declaration.convention)
            except SettingsError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def trajectory(self) -> bool:  # type: ignore[override]
        """Whether near copies stay."""
        return self.is_trajectory

    def convert(self, raws: Sequence[RawFrame]) -> SourceData:
        """Return the labeled frames of raw ones.

        Raises:
            LabelError: If a declared key is missing, or a field is declared.
            ConventionError: If labels are implausible or contradict each other.
        """
        rules = {}
        for observable, declaration in self.labels.items():
            keys = (declaration.key if _holds(raw, declaration.key) else None for raw in raws)
            if not declaration.key:
                keys = (find_key(raw, observable) for raw in raws)
            key = next((key for key in keys if key is not None), None)
            if key is None:
                asked = declaration.key or ", ".join(ALIASES[observable])
                found = sorted({name for raw in raws[:10] for name in [*raw.info, *raw.arrays]})
                raise LabelError(
                    f"Source {self.label!r}: no frame holds {observable} under {asked}.",
                    f"The first frames hold: {', '.join(found) or 'nothing'}.",
                )
            rules[observable] = (key, get_convention(observable, declaration.convention))
        tag = largest_field(raws)
        if self.field == "refuse":
            refuse_field(self, raws)
        if self.identifier:
            for raw in raws:
                _identify(raw, self.identifier)
        data = label_frames(self, raws, rules)
        check_magnitudes(data.frames, self.label)
        if tag:
            data.notes.append(f"a tagged electric field of up to {tag:g} was ignored, as declared")
        if self.is_trajectory:
            data.notes.extend(require_consistent(self.label, data.frames))
        return data


def _holds(raw: RawFrame, key: str) -> bool:
    return raw.arrays.get(key, raw.info.get(key)) is not None


def _identify(raw: RawFrame, key: str) -> None:
    """Keep an identifier as one word that no reader takes for a number."""
    value = raw.info.get(key)
    if value is None:
        return
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    raw.info["identifier"] = f"{_UNSAFE.sub('_', key)}:{_UNSAFE.sub('_', str(value).strip())}"
