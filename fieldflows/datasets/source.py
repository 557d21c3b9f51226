"""What every source of labels has in common: a typed configuration that can read its file."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.frame import LabeledFrame, reduced_formula
from fieldflows.datasets.labels import (
    ALIASES,
    FIELD_KEYS,
    Convention,
    convert_all,
    describe,
    find_key,
    get_convention,
    raw_value,
)
from fieldflows.datasets.plausibility import check_plausible
from fieldflows.datasets.splits import SplitConfig
from fieldflows.errors import LabelError, SettingsError
from fieldflows.schemas.dataset import Finding, FrameFindings

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, all)."""

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass
class SourceData:
    """What a source makes of its file.

    Attributes:
        frames: Labels in internal units, not yet cleaned.
        n_frames: Frames in the file.
        conversions: One line per label: key, convention, internal unit.
        notes: What else was decided while reading.
        rejects: Frames that the source itself throws out.
        flags: Findings by frame number that do not throw it out.
        median_epsilon: Median of tr ε∞/3, or None without polarizabilities.
    """

    frames: list[LabeledFrame]
    n_frames: int
    conversions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rejects: list[FrameFindings] = field(default_factory=list)
    flags: dict[int, list[Finding]] = field(default_factory=dict)
    median_epsilon: float | None = None


class Source(BaseModel):
    """Base of all sources: where the file is, and what may be done with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trajectory: ClassVar[bool] = False
    """Whether frames are alike on purpose, so that near copies stay."""

    type: str = Field(description="Kind of source.")
    path: str = Field(description="File; ${NAME} is replaced from the environment; relative to the configuration file.")
    name: str = Field(default="", description="Name that frames carry; the stem of the file if empty.")
    license: str = Field(default="not stated", description="License facts of the labels.")
    reference: str = Field(default="", description="Whom to cite.")
    split: SplitConfig | None = Field(default=None, description="Split of this source, if not the dataset's.")
    limit: int | None = Field(default=None, ge=1, description="Read only so many frames (a quick look).")
    plausible_epsilon: tuple[float, float] = Field(
        default=(1.5, 20.0),
        description="Smallest and largest plausible median of tr ε∞/3; outside, the build stops.",
        json_schema_extra={"unit": "1"},
    )

    @property
    def label(self) -> str:
        """The name, or the stem of the file."""
        return self.name or Path(self.path).name.split(".")[0]

    @property
    def place(self) -> str:
        """Where the labels come from, for the manifest."""
        return self.path

    def locate(self, base: Path | None, report: Progress) -> Path:
        """Return the file to read; a source that asks a service fetches it first.

        Args:
            base: Folder that relative paths of the configuration refer to.
            report: Called with (stage, done, all) as a fetch goes on.

        Raises:
            SettingsError: If the path names a variable that is not set.
        """
        return expand_path(self.path, base)

    @abstractmethod
    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of a file.

        Args:
            path: The file, expanded.
            base: Folder that other relative paths of the configuration refer to.
        """


def expand_path(text: str, base: Path | None = None) -> Path:
    """Return a path with ``${NAME}`` and ``~`` replaced, relative to ``base``.

    Raises:
        SettingsError: If a variable is not set.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise SettingsError(
                f"The path {text!r} needs the environment variable {name}, which is not set.",
                f"Set it: export {name}=/path/to/the/folder.",
            )
        return os.environ[name]

    path = Path(_VARIABLE.sub(replace, text)).expanduser()
    return path if path.is_absolute() or base is None else base / path


def first_keys(raws: Sequence[RawFrame], conventions: Mapping[str, str]) -> dict[str, tuple[str, Convention]]:
    """Return {observable: (key, convention)} for the observables that the first frames hold.

    Args:
        raws: Frames as the file has them.
        conventions: Name of the convention by observable.
    """
    rules = {}
    for observable, name in conventions.items():
        key = next((k for raw in raws if (k := find_key(raw, observable)) is not None), None)
        if key is not None:
            rules[observable] = (key, get_convention(observable, name))
    return rules


def label_frames(source: Source, raws: Sequence[RawFrame], rules: Mapping[str, tuple[str, Convention]]) -> SourceData:
    """Return the frames with their labels converted; the plausibility gate is passed on the way.

    Args:
        source: Who asks.
        raws: Frames as the file has them.
        rules: {observable: (key, convention)}.

    Raises:
        LabelError: If no frame has any of the labels.
        ConventionError: If the polarizabilities are implausible.
    """
    median = None
    if "polarizability" in rules:
        key, convention = rules["polarizability"]
        median = check_plausible(raws, key, convention, source.plausible_epsilon, source.label)
    frames: list[LabeledFrame] = []
    data = SourceData(frames, len(raws), [describe(name, *rule) for name, rule in rules.items()], median_epsilon=median)
    errors: list[LabelError] = []
    for raw in raws:
        try:
            labels = convert_all(raw, rules)
        except LabelError as error:
            errors.append(error)
            data.rejects.append(malformed(source, raw, error))
            continue
        if labels:
            frames.append(make_frame(source, raw, labels))
    if not frames and errors:
        raise errors[0]
    if not frames:
        known = ", ".join(ALIASES[name][0] for name in rules or ALIASES)
        raise LabelError(
            f"Source {source.label!r} ({source.path}): no frame holds a label; looked for {known} and other spellings."
        )
    n_bare = len(raws) - len(frames) - len(errors)
    if n_bare:
        data.notes.append(f"{n_bare} frames without any label were left out")
    return data


def malformed(source: Source, raw: RawFrame, error: LabelError) -> FrameFindings:
    """Return the reject of a frame whose label has another shape than its neighbors'."""
    return FrameFindings(
        source=source.label,
        source_index=frame_index(raw),
        formula=reduced_formula(raw.numbers),
        findings=[Finding(code="malformed", value=None, threshold=None, unit="", message=error.message)],
    )


def frame_index(raw: RawFrame) -> int:
    """Return the frame number in the original file: ``src_index`` if the file says so, else the position."""
    value = raw.info.get("src_index", raw.index)
    return int(value) if isinstance(value, (int, float)) else raw.index


def make_frame(source: Source, raw: RawFrame, labels: dict[str, Any], **extra: Any) -> LabeledFrame:
    """Return a labeled frame; origin (``src_file``, ``src_index``), ``identifier``, ``relaxed`` and ``config_weight``
    are kept.
    """
    index = frame_index(raw)
    if "relaxed" in raw.info:
        extra["relaxed"] = raw.info["relaxed"]
    if "config_weight" in raw.info:
        extra["weight"] = float(raw.info["config_weight"])
    if isinstance(raw.info.get("identifier"), str):
        extra["identifier"] = raw.info["identifier"]
    if "src_file" in raw.info:
        extra["origin"] = f"{raw.info['src_file']}:{index}"
    return LabeledFrame(
        atoms=raw.atoms(),
        labels=labels,
        material=reduced_formula(raw.numbers),
        source=source.label,
        source_index=index,
        extra=extra,
    )


def largest_field(raws: Sequence[RawFrame]) -> float:
    """Return the largest component of an electric field that any frame declares, in the file's unit."""
    largest = 0.0
    for raw in raws:
        for key in FIELD_KEYS:
            value = raw_value(raw, key)
            if value is not None and value.size:
                largest = max(largest, float(np.abs(value).max()))
    return largest


def refuse_field(source: Source, raws: Sequence[RawFrame]) -> None:
    """Raise if a frame declares an electric field: labels are those of zero field.

    Raises:
        LabelError: Names the field.
    """
    field_found = largest_field(raws)
    if field_found > 0:
        raise LabelError(
            f"Source {source.label!r}: frames declare an electric field of up to {field_found:g}; labels must be "
            "those at zero field.",
            "If the tag is spurious, read the file as 'extxyz' with field: ignore.",
        )
