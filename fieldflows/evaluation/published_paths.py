"""A model on published polarization paths: the property itself, path by path, beside the published polarization."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fieldflows import __version__
from fieldflows.datasets.extxyz import file_sha256, read_extxyz
from fieldflows.datasets.paths import NORM_KEY, PathLimits, PolarizationPath, judge_path, read_paths
from fieldflows.errors import DataError
from fieldflows.evaluation.independent import with_independent_estimates
from fieldflows.physics.branches import polarization_of
from fieldflows.physics.polarization import fold_polarization, to_microcoulomb_per_cm2
from fieldflows.properties.base import PropertyInput, model_card
from fieldflows.properties.run import run_property
from fieldflows.properties.spontaneous_polarization import (
    Nonpolar,
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import (
    PathErrors,
    PublishedPath,
    PublishedPathsDocument,
    SpontaneousPolarizationDocument,
)
from fieldflows.training.metrics import FloatArray, errors
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel

Seen = Literal["train", "valid", "no", "unknown"]

WIDE = 0.8
"""Some published pairs differ by more strain than a small distortion has."""

GROUPS: dict[str, tuple[Seen, ...]] = {
    "formulas never seen": ("no",),
    "formulas used to select the model": ("valid",),
    "formulas not trained on": ("no", "valid"),
    "formulas trained on": ("train",),
    "all": ("no", "valid", "train", "unknown"),
}
"""Groups of paths by what the model has seen of their formulas."""

WAYS = {"charges": "|P_s|, Z* of the ends", "branch": "|P_s|, branch by Z*", "difference": "|P_s|, difference of P"}
"""The ways to P_s, as they are called in tables."""


def compare_published(
    file: str | Path,
    model: FieldModel,
    others: Sequence[FieldModel] = (),
    settings: SpontaneousPolarizationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PublishedPathsDocument:
    """Return P_s of a model for every path of a file beside the published one.

    Cells and atoms are taken in the order given, so that frames are those of the publication.

    Args:
        file: Extended XYZ of paths with published polarizations (:mod:`fieldflows.datasets.paths`).
        model: The model.
        others: Models for independent estimates.
        settings: Settings of the property; ``match``, ``max_strain`` and ``unrelated`` are set here.
        progress: Called with (done, total).

    Raises:
        DataError: If the file holds no path, or cannot be read.
        CapabilityError: If a model has no field response.
    """
    start = time.perf_counter()
    paths, _ = read_paths(list(read_extxyz(file)))
    if not paths:
        raise DataError(f"{file} holds no polarization path.", "Give the file of published paths.")
    base = settings or SpontaneousPolarizationSettings()
    base = base.model_copy(update={"match": "given", "max_strain": WIDE, "unrelated": True})
    found: list[PublishedPath] = []
    failures: list[FailureDocument] = []
    for number, path in enumerate(paths, start=1):
        outcome = _one(path, model, others, base)
        (failures if isinstance(outcome, FailureDocument) else found).append(outcome)  # type: ignore[arg-type]
        if progress is not None:
            progress(number, len(paths))
    return PublishedPathsDocument(
        file_sha256=file_sha256(file),
        model=model_card(model),
        others=tuple(model_card(item) for item in others),
        paths=tuple(found),
        errors=tuple(path_errors(found)),
        failures=tuple(failures),
        largest_norm_error=max(path.norm_error for path in paths),
        wall_time=time.perf_counter() - start,
        code_version=__version__,
    )


def _one(
    path: PolarizationPath,
    model: FieldModel,
    others: Sequence[FieldModel],
    settings: SpontaneousPolarizationSettings,
) -> PublishedPath | FailureDocument:
    nonpolar, polar = path.frames[0], path.frames[-1]
    prop = SpontaneousPolarizationProperty(settings, Nonpolar(nonpolar.atoms(), _id(nonpolar.info, "nonpolar")))
    subject = PropertyInput(polar.atoms(), _id(polar.info, "polar"), path.wfid)
    (outcome,) = run_property(prop, [subject], model)
    if isinstance(outcome, FailureDocument):
        return outcome
    if not isinstance(outcome, SpontaneousPolarizationDocument):
        raise DataError(f"A result is a {type(outcome).__name__}.")
    outcome = with_independent_estimates(outcome, prop, others)
    rejects, flags = judge_path(path, PathLimits())
    published = polar.info.get(NORM_KEY)
    cells = _cells(outcome)
    return PublishedPath(
        path=path.wfid,
        formula=outcome.formula_pretty,
        polar_id=_id(polar.info, "polar") or "",
        nonpolar_id=_id(nonpolar.info, "nonpolar") or "",
        seen=_seen(model, outcome.formula_pretty),
        rejected=bool(rejects),
        label_flags=tuple(item.code for item in (*rejects, *flags)),
        label=path.spontaneous_polarization,
        label_norm=float(np.linalg.norm(path.spontaneous_polarization)),
        published_norm=published if isinstance(published, float) else None,
        nonpolar_fractions=path.fractions[0],
        predicted=outcome,
        label_along=_along(path.changes, cells),
        predicted_along=_along(outcome.fractions, cells),
    )


def _along(fractions: Any, cells: FloatArray) -> FloatArray:
    """Return P of each frame in its own cell, (k, 3) in µC/cm²."""
    pairs = zip(fractions, cells, strict=True)
    return np.array([polarization_of(f, cell) for f, cell in pairs]) * E_PER_A2_TO_UC_PER_CM2


def _id(info: dict[str, Any], end: str) -> str | None:
    value = info.get(f"{end}_mpid")
    return None if value is None else str(value)


def _seen(model: FieldModel, formula: str) -> Seen:
    formulas = model.info.provenance.get("formulas")
    if not isinstance(formulas, dict):
        return "unknown"
    if formula in formulas.get("train", ()):
        return "train"
    return "valid" if formula in formulas.get("valid", ()) else "no"


def path_errors(paths: Sequence[PublishedPath]) -> list[PathErrors]:
    """Return errors of P and |P_s| by group of paths; paths that jump are left out, empty groups too.

    P, components of all frames, is compared modulo quanta of the frame's cell, relative to the nonpolar end; and, as "P
    as published", with the offset that the nonpolar end has in the publication, which a single-valued P cannot have.
    """
    found = []
    for group, kinds in GROUPS.items():
        chosen = [item for item in paths if item.seen in kinds and not item.rejected]
        if not chosen:
            continue
        label, predicted = (np.concatenate([getattr(item, name) for item in chosen]) for name in _ALONG)
        cells = np.concatenate([_cells(item.predicted) for item in chosen])
        offsets = np.concatenate([_offsets(item) for item in chosen])
        for name, shift in (("P, components, modulo quanta", 0.0), ("P as published, modulo quanta", offsets)):
            apart, zero = (_folded(value - label - shift, cells) for value in (predicted, np.zeros_like(label)))
            found.append(_errors(group, chosen, name, label + shift, label + shift + apart, label + shift + zero))
        norms = np.array([item.label_norm for item in chosen])
        for way, name in WAYS.items():
            values = np.array([getattr(item.predicted, f"ps_{way}_norm") for item in chosen])
            found.append(_errors(group, chosen, name, norms, values, np.zeros_like(norms)))
        vectors = np.array([item.label for item in chosen])
        values = np.array([item.predicted.ps_charges for item in chosen])
        found.append(_errors(group, chosen, "P_s, components, Z* of the ends", vectors, values, np.zeros_like(vectors)))
    return found


_ALONG = ("label_along", "predicted_along")


def _cells(document: SpontaneousPolarizationDocument) -> FloatArray:
    """Return the cells of the frames, (k, 3, 3) in Å in the frame of the polar end, linear between the ends."""
    ends = document.nonpolar.lattice.matrix, document.structure.lattice.matrix
    return np.array([(1 - x) * ends[0] + x * ends[1] for x in document.path_coordinate])


def _offsets(item: PublishedPath) -> FloatArray:
    values = [polarization_of(item.nonpolar_fractions, cell) for cell in _cells(item.predicted)]
    return np.array(values) * E_PER_A2_TO_UC_PER_CM2


def _folded(difference: FloatArray, cells: FloatArray) -> FloatArray:
    pairs = zip(difference / E_PER_A2_TO_UC_PER_CM2, cells, strict=True)
    return to_microcoulomb_per_cm2([fold_polarization(value, cell) for value, cell in pairs])


def _errors(
    group: str, chosen: Sequence[PublishedPath], name: str, label: FloatArray, value: FloatArray, zero: FloatArray
) -> PathErrors:
    own, trivial = errors(label.ravel(), value.ravel()), errors(label.ravel(), zero.ravel())
    return PathErrors(
        group=group,
        n_paths=len(chosen),
        n_formulas=len({item.formula for item in chosen}),
        compared=name,
        mae=own["mae"],
        rmse=own["rmse"],
        r2=own["r2"],
        zero_mae=trivial["mae"],
        zero_rmse=trivial["rmse"],
    )
