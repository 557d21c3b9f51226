"""Spontaneous polarization along paths from a nonpolar to a polar crystal, and scores on the published branch.

P_s = Σ_i [f_i(polar) − f_i(nonpolar)] a_i(polar)/Ω(polar), with the fractions f_i of the quanta e a_i/Ω along each
frame's own lattice vectors.  A model's polarization is single valued and continuous, so that its fractions are taken
as they are; those of the labels were put on one branch when the dataset was built.

That of a crystal has many branches, and no single-valued function can follow it everywhere: zincblende and layered BN
both have a P of zero by symmetry, but on branches apart, and wurtzite, next to zincblende, cannot be right from both.
Born charges are single valued.  Those of the model at both ends give an estimate of P_s that knows its branch,
P_s ≈ (1/Ω) Σ_κ ½ [Z*_κ(polar) + Z*_κ(nonpolar)]·Δu_κ, and tell which quanta to add to the model's P.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.datasets.paths import N_FRAMES
from fieldflows.evaluation.statistics import quantity_evaluation
from fieldflows.physics.branches import estimate_from_charges, spontaneous_polarization
from fieldflows.physics.polarization import fold_polarization, polarization_quantum
from fieldflows.schemas.evaluation import PathEvaluation, QuantityEvaluation
from fieldflows.training.metrics import FloatArray, Predictions
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.datasets.frame import LabeledFrame

UNIT = "µC/cm²"

EndKey = tuple[str, str, int]
EndCharges = Mapping[EndKey, FloatArray]
"""Born effective charges (n, 3, 3), e, by source, identifier of the path, and frame number."""


def path_key(frame: LabeledFrame) -> tuple[str, str] | None:
    """Return source and identifier of the path that a frame belongs to, or None if it belongs to none."""
    if "wfid" not in frame.extra or "path_index" not in frame.extra:
        return None
    return frame.source, str(frame.extra["wfid"])


def end_key(frame: LabeledFrame) -> EndKey | None:
    """Return the key of a frame at an end of a path, or None for any other frame."""
    key = path_key(frame)
    index = -1 if key is None else int(frame.extra["path_index"])
    return (*key, index) if key is not None and index in (0, N_FRAMES - 1) else None


def polarization_of_displacements(
    polar: Atoms, polar_charges: FloatArray, nonpolar: Atoms, nonpolar_charges: FloatArray
) -> FloatArray:
    """Return (1/Ω) Σ_κ ½ [Z*_κ(polar) + R Z*_κ(nonpolar) Rᵀ]·Δu_κ, (3,) in e/Å², in the frame of the polar end.

    Δu_κ is the shortest change of the fractional coordinates times the polar lattice; R, the rigid rotation between
    the lattices, comes from the polar decomposition of the deformation.

    Args:
        polar: The polar end.
        polar_charges: (n, 3, 3) its Born effective charges, e.
        nonpolar: The nonpolar end, atoms in the same order.
        nonpolar_charges: (n, 3, 3) its Born effective charges, e.
    """
    cell, other = np.array(polar.cell[:]), np.array(nonpolar.cell[:])
    left, _, right = np.linalg.svd(np.linalg.solve(other, cell))
    rotation = (left @ right).T
    moved = polar.get_scaled_positions(wrap=False) - nonpolar.get_scaled_positions(wrap=False)
    turned = np.einsum("ia,nab,jb->nij", rotation, nonpolar_charges, rotation)
    return estimate_from_charges([turned, polar_charges], moved - np.round(moved), cell)


def evaluate_paths(
    frames: Sequence[LabeledFrame], predictions: Predictions, charges: EndCharges | None = None
) -> tuple[list[PathEvaluation], list[str]]:
    """Return P_s of labels and model for every path, and the names of paths that lack an end.

    Args:
        frames: Frames of any kind; those of paths carry ``wfid`` and ``path_index`` in ``extra``.
        predictions: One mapping per frame, internal units.
        charges: The model's Born effective charges at the ends of paths, as far as it has any.
    """
    groups: dict[tuple[str, str], dict[int, tuple[LabeledFrame, Any]]] = defaultdict(dict)
    for frame, prediction in zip(frames, predictions, strict=True):
        key = path_key(frame)
        if key is not None and "polarization" in frame.labels and "polarization" in prediction:
            groups[key][int(frame.extra["path_index"])] = (frame, prediction["polarization"])
    complete, incomplete = [], []
    for (source, wfid), members in groups.items():
        if {0, N_FRAMES - 1} <= set(members):
            flags = tuple(sorted({flag for frame, _ in members.values() for flag in frame.flags}))
            path = _path(source, wfid, *members[N_FRAMES - 1], *members[0], flags)
            complete.append(_on_branch(path, members[N_FRAMES - 1][0], members[0][0], charges or {}))
        else:
            incomplete.append(f"{source}:{wfid}")
    return complete, incomplete


def _path(
    source: str,
    wfid: str,
    polar: LabeledFrame,
    at_polar: FloatArray,
    nonpolar: LabeledFrame,
    at_nonpolar: FloatArray,
    flags: tuple[str, ...],
) -> PathEvaluation:
    cells = np.array(polar.atoms.cell[:]), np.array(nonpolar.atoms.cell[:])
    label = spontaneous_polarization(polar.labels["polarization"], cells[0], nonpolar.labels["polarization"], cells[1])
    predicted = spontaneous_polarization(at_polar, cells[0], at_nonpolar, cells[1])
    folded = fold_polarization(predicted - label, cells[0])
    scale = E_PER_A2_TO_UC_PER_CM2
    return PathEvaluation(
        path=wfid,
        split=polar.split or "",
        material=polar.material,
        source=source,
        polar=str(polar.extra.get("polar_mpid", "")),
        nonpolar=str(polar.extra.get("nonpolar_mpid", "")),
        label=tuple(label * scale),
        predicted=tuple(predicted * scale),
        label_norm=float(np.linalg.norm(label)) * scale,
        predicted_norm=float(np.linalg.norm(predicted)) * scale,
        distance=float(np.linalg.norm(predicted - label)) * scale,
        folded_distance=float(np.linalg.norm(folded)) * scale,
        quanta=polarization_quantum(cells[0]) * scale,
        flags=flags,
    )


def _on_branch(
    path: PathEvaluation, polar: LabeledFrame, nonpolar: LabeledFrame, charges: EndCharges
) -> PathEvaluation:
    """Return a path with the estimate from the charges at its ends, and the model's P_s on the branch nearest to it."""
    at_ends = [charges.get(key) for frame in (polar, nonpolar) if (key := end_key(frame)) is not None]
    if len(at_ends) != 2 or at_ends[0] is None or at_ends[1] is None:
        return path
    estimate = polarization_of_displacements(polar.atoms, at_ends[0], nonpolar.atoms, at_ends[1])
    estimate = estimate * E_PER_A2_TO_UC_PER_CM2
    guided = estimate + _fold(np.array(path.predicted) - estimate, np.array(path.quanta))
    return path.model_copy(update={"from_charges": tuple(estimate.tolist()), "guided": tuple(guided.tolist())})


def path_quantities(paths: Sequence[PathEvaluation]) -> dict[str, QuantityEvaluation]:
    """Return the errors of P_s over paths, beside predicting zero.

    |P_s|, the vector, and the vector modulo quanta; and, if the model told its charges at the ends of all paths, |P_s|
    and the vector on the branch that they choose and as they estimate it.
    """
    if not paths:
        return {}
    label, predicted = (np.array([getattr(path, name) for path in paths]) for name in ("label", "predicted"))
    zero = np.zeros_like(label)

    def folded(value: FloatArray) -> FloatArray:
        return label + [_fold(d, np.array(path.quanta)) for d, path in zip(value - label, paths, strict=True)]

    def norm(value: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.norm(value, axis=1))

    views: list[tuple[str, str, FloatArray, Callable[[FloatArray], FloatArray]]] = [
        ("", "P_s", predicted, np.ravel),
        ("_folded", "P_s modulo quanta", predicted, lambda value: folded(value).ravel()),
    ]
    for name, text, field in (("_guided", "P_s, branch by Z*", "guided"), ("_charges", "P_s from Z*", "from_charges")):
        values = [getattr(path, field) for path in paths]
        if None not in values:
            views.append((name, text, np.array(values), np.ravel))
    found = {}
    for name, symbol, value, view in views:
        key = f"spontaneous_polarization{name}"
        if name != "_folded":
            # 'P_s, branch by Z*' -> '|P_s|, branch by Z*'
            found[f"{key}_norm"] = quantity_evaluation(
                symbol.replace("P_s", "|P_s|", 1), UNIT, norm(label), norm(value), {"zero": (norm(label), norm(zero))},
                len(paths), False,
            )  # fmt: skip
        reference = label.ravel()
        baselines = {"zero": (reference, view(zero))}
        found[key] = quantity_evaluation(symbol, UNIT, reference, view(value), baselines, len(paths), True)
    return found


def _fold(difference: FloatArray, quanta: FloatArray) -> FloatArray:
    fractions = difference @ np.linalg.inv(quanta)
    return (fractions - np.round(fractions)) @ quanta


def raw_quantity(frames: Sequence[LabeledFrame], predictions: Predictions) -> dict[str, QuantityEvaluation]:
    """Return the errors against polarizations as published, modulo quanta, where frames carry them.

    The branch of the published values is that of the nonpolar end, which is half a quantum off zero in some paths
    although symmetry makes any single-valued model zero there: what remains of a perfect model is this offset.
    """
    reference, predicted, zero = [], [], []
    for frame, prediction in zip(frames, predictions, strict=True):
        raw = frame.extra.get("polarization_raw")
        if raw is None or "polarization" not in prediction:
            continue
        label, cell = np.asarray(raw, dtype=float), np.array(frame.atoms.cell[:])
        reference.append(label)
        predicted.append(label + fold_polarization(prediction["polarization"] - label, cell))
        zero.append(label + fold_polarization(-label, cell))
    if not reference:
        return {}
    arrays = [np.concatenate(values) * E_PER_A2_TO_UC_PER_CM2 for values in (reference, predicted, zero)]
    record = quantity_evaluation(
        "P (as published)", UNIT, arrays[0], arrays[1], {"zero": (arrays[0], arrays[2])}, len(reference), True
    )
    return {"polarization_raw": record}
