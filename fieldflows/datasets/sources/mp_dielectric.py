"""Dielectric documents of the Materials Project with the structures that they belong to, as saved API answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.data import atomic_numbers
from pydantic import Field

from fieldflows.datasets.extxyz import RawFrame, open_text
from fieldflows.datasets.labels import get_convention
from fieldflows.datasets.orientation import from_ieee
from fieldflows.datasets.source import Source, SourceData, label_frames
from fieldflows.errors import DataError, EvaluationError
from fieldflows.schemas.dataset import Finding, FrameFindings

DIELECTRIC_KEYS = ("GET /materials/dielectric/", "dielectric")
SUMMARY_KEYS = ("GET /materials/summary/", "summary")

VOLUME_TOLERANCE = 1e-3
"""Largest relative difference between the document's volume and the structure's: above it they are not of one task."""


class MPDielectric(Source):
    """Answers of ``/materials/dielectric/`` and ``/materials/summary/`` in one JSON file.

    The tensors are symmetrized and in IEEE orientation; they are turned back to the frame of the structure, so that
    labels are the symmetrized tensors there.  Documents hold no Born charges.  The file is read as plain JSON: no
    class that it names is loaded.
    """

    type: Literal["mp_dielectric"] = "mp_dielectric"
    deprecated: bool = Field(default=False, description="Keep documents that are marked deprecated.")
    license: str = "CC-BY-4.0 (Materials Project)"
    reference: str = "Jain et al., APL Mater. 1, 011002 (2013); Petousis et al., Sci. Data 4, 160134 (2017)"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames of all documents whose structure is at hand.

        Raises:
            DataError: If the file cannot be read or has no such answers.
            ConventionError: If the permittivities are implausible.
        """
        answers = _load(path)
        documents = list(islice(_entries(answers, DIELECTRIC_KEYS, path), self.limit))
        structures = {str(item.get("material_id")): item for item in _entries(answers, SUMMARY_KEYS, path)}
        raws, rejects = [], []
        for index, document in enumerate(documents):
            raw = self._frame(index, document, structures.get(str(document.get("material_id"))))
            if isinstance(raw, RawFrame):
                raws.append(raw)
            else:
                formula = str(document.get("formula_pretty", ""))
                rejects.append(FrameFindings(source=self.label, source_index=index, formula=formula, findings=[raw]))
        if not raws:
            reason = rejects[0].findings[0].message if rejects else "it holds no document"
            raise DataError(f"Source {self.label!r}: no document of {path} can be used; of the first one: {reason}.")
        rules = {
            "polarizability": ("electronic", get_convention("polarizability", "permittivity")),
            "epsilon_ionic": ("ionic", get_convention("epsilon_ionic", "permittivity")),
        }
        data = label_frames(self, raws, rules)
        data.n_frames = len(documents)
        data.rejects.extend(rejects)
        data.notes.append("tensors turned from IEEE orientation to the frame of the structure; they are symmetrized")
        identifiers = {raw.index: raw.info["material_id"] for raw in raws}
        for frame in data.frames:
            frame.extra["material_id"] = identifiers[frame.source_index]
        return data

    def _frame(self, index: int, document: Mapping[str, Any], summary: Mapping[str, Any] | None) -> RawFrame | Finding:
        """Return a document as a frame, or the reason why it cannot be one."""

        def problem(code: str, message: str, value: float | None = None, threshold: float | None = None) -> Finding:
            return Finding(code=code, value=value, threshold=threshold, unit="1" if value is not None else "",
                           message=message)  # fmt: skip

        if document.get("deprecated") and not self.deprecated:
            return problem("deprecated", "the document is marked deprecated")
        if summary is None or not summary.get("structure"):
            return problem("no_structure", "no structure came with it")
        try:
            raw = _structure(summary["structure"], index)
            tensors = {key: np.asarray(document.get(key), dtype=float) for key in ("electronic", "ionic")}
            volume = abs(float(np.linalg.det(raw.cell)))
            stated = float(document.get("volume") or volume)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return problem("malformed", f"structure or tensors cannot be read: {error}")
        if volume < 1e-3 or abs(volume / stated - 1) > VOLUME_TOLERANCE:
            difference = volume / stated - 1
            message = f"the structure has {volume:.3f} Å³, the document {stated:.3f}: not of one task"
            return problem("other_structure", message, abs(difference), VOLUME_TOLERANCE)
        raw.info["material_id"] = str(document.get("material_id"))
        for key, tensor in tensors.items():
            if tensor.shape != (3, 3):
                return problem("malformed", f"{key} is no 3x3 tensor")
            try:
                raw.info[key] = from_ieee(tensor, raw.atoms()).ravel()
            except EvaluationError as error:
                return problem("no_symmetry", error.message)
        return raw


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with open_text(path) as handle:
            answers = json.load(handle)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(answers, dict):
        raise DataError(f"{path} holds no API answers, expected the keys {DIELECTRIC_KEYS[1]} and {SUMMARY_KEYS[1]}.")
    return answers


def _entries(answers: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    """Return the documents of one route; an answer is a list or has it under ``data``."""
    for key in keys:
        answer = answers.get(key)
        if isinstance(answer, dict):
            answer = answer.get("data")
        if isinstance(answer, list):
            return [item for item in answer if isinstance(item, dict)]
    raise DataError(f"{path} holds no {keys[-1]} documents; it has {', '.join(map(str, answers)) or 'nothing'}.")


def _structure(data: Mapping[str, Any], index: int) -> RawFrame:
    """Return a serialized pymatgen structure as a frame, from its numbers alone.

    Raises:
        ValueError: If a site is partially occupied or holds no element.
    """
    cell = np.asarray(data["lattice"]["matrix"], dtype=float).reshape(3, 3)
    numbers, scaled = [], []
    for site in data["sites"]:
        (species,) = site["species"]
        symbol = str(species["element"])
        if float(species.get("occu", 1)) != 1 or symbol not in atomic_numbers:
            raise ValueError(f"site {species!r} is no fully occupied element")
        numbers.append(atomic_numbers[symbol])
        scaled.append(site["abc"])
    positions = np.asarray(scaled, dtype=float).reshape(-1, 3) @ cell
    if not numbers:
        raise ValueError("it has no sites")
    return RawFrame(np.array(numbers, dtype=np.int64), positions, cell, np.ones(3, dtype=bool), index=index)
