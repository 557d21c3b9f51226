"""From a polarization path to labeled frames: the settings and the rejects that all sources of paths share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.paths import PathLimits, PolarizationPath, judge_path
from fieldflows.datasets.source import Source, SourceData, make_frame
from fieldflows.physics.branches import polarization_of
from fieldflows.schemas.dataset import FrameFindings

Labels = Mapping[str, NDArray[np.float64]]


class PathSettings(BaseModel):
    """What a path may do before it is flagged or rejected, as settings of a source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reject_second_difference: float = Field(
        default=0.15, gt=0, description="Reject paths that bend more.", json_schema_extra={"unit": "quantum"}
    )
    flag_step: float = Field(
        default=0.35, gt=0, description="Flag paths with a larger step.", json_schema_extra={"unit": "quantum"}
    )
    flag_small: float = Field(
        default=0.1, ge=0, description="Flag smaller spontaneous polarizations.", json_schema_extra={"unit": "µC/cm²"}
    )
    flag_offset: float = Field(
        default=1e-3,
        gt=0,
        description="Flag a nonpolar end that is published further off zero.",
        json_schema_extra={"unit": "quantum"},
    )

    @property
    def limits(self) -> PathLimits:
        """Thresholds for paths."""
        return PathLimits(self.reject_second_difference, self.flag_step, self.flag_small, self.flag_offset)


def describe_polarization(polarization: str, quanta: str) -> str:
    """Return what is done to the polarization, for the record, given the keys of a source."""
    return (
        f"{polarization} / {quanta}: fractions along the lattice vectors → polarization in e/Å², Cartesian in each "
        "frame's own cell, relative to the nonpolar end"
    )


def add_path(
    source: Source,
    path: PolarizationPath,
    limits: PathLimits,
    data: SourceData,
    more_labels: Callable[[RawFrame], Labels],
    **extra: Any,
) -> bool:
    """Add the ten frames of a path to the data of a source, or its rejects; return whether it was rejected.

    P_label = Σ_i (f_i − f_i(nonpolar)) a_i/Ω in the frame's own cell; the published branch Σ_i f_i a_i/Ω is kept
    beside it as ``extra["polarization_raw"]``, both (3,) in e/Å².

    Args:
        source: Who asks.
        path: Ten frames, nonpolar end first.
        limits: What the path may do.
        data: Frames, flags and rejects are appended to it.
        more_labels: Returns the other labels of a frame in internal units.
        extra: More to remember of every frame.
    """
    rejects, flags = judge_path(path, limits)
    for k, raw in enumerate(path.frames):
        frame = make_frame(
            source,
            raw,
            {"polarization": polarization_of(path.changes[k], raw.cell), **more_labels(raw)},
            wfid=path.wfid,
            path_index=k,
            nonpolar_mpid=str(raw.info.get("nonpolar_mpid", "")),
            polar_mpid=str(raw.info.get("polar_mpid", "")),
            polarization_raw=polarization_of(path.fractions[k], raw.cell),
            **extra,
        )
        if rejects:
            data.rejects.append(
                FrameFindings(
                    source=frame.source, source_index=frame.source_index, formula=frame.material, findings=rejects
                )
            )
            continue
        data.frames.append(frame)
        if flags:
            data.flags[frame.source_index] = flags
    return bool(rejects)
