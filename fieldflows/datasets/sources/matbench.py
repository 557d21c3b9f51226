"""Refractive indices of the Matbench task ``matbench_dielectric``, for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fieldflows.datasets.labels import get_convention
from fieldflows.datasets.matbench import OFFICIAL_SHA256, BadRow, read_matbench, read_rows
from fieldflows.datasets.source import Source, SourceData, expand_path, label_frames
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import Finding, FrameFindings

__all__ = ["MatbenchDielectric", "read_matbench"]


class MatbenchDielectric(Source):
    """``matbench_dielectric.json.gz``: n by row, identifiers and official folds in ``extra``.

    n alone is no label to train on: it judges.  ``extra["mbid"]`` is the identifier, ``extra["matbench_fold"]`` the
    fold in whose test set the crystal is ("fold_0" to "fold_4").
    """

    type: Literal["matbench_dielectric"] = "matbench_dielectric"
    sha256: str = Field(
        default=OFFICIAL_SHA256,
        pattern="^([0-9a-fA-F]{64})?$",
        description="What the file must have; empty for another file of the same form.",
    )
    index: str = Field(default="", description="For another file: CSV with the columns row and mbid.")
    license: str = "MIT (matbench); the data derive from the Materials Project, CC-BY-4.0"
    reference: str = "Dunn et al., npj Comput. Mater. 6, 138 (2020); Petousis et al., Sci. Data 4, 160134 (2017)"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file is not the expected one, or not of this form.
        """
        rows = read_rows(path, self.sha256, expand_path(self.index, base) if self.index else None)[: self.limit]
        entries = [item for item in rows if not isinstance(item, BadRow)]
        if not entries:
            reason = rows[0].reason if rows and isinstance(rows[0], BadRow) else "it has no rows"
            raise DataError(f"Source {self.label!r}: no row of {path} can be used; of the first one: {reason}.")
        for entry in entries:
            entry.raw.info["n"] = entry.n
        rules = {"refractive_index": ("n", get_convention("refractive_index", "sqrt_mean_epsilon"))}
        data = label_frames(self, [entry.raw for entry in entries], rules)
        data.n_frames = len(rows)
        by_row = {entry.row: entry for entry in entries}
        for frame in data.frames:
            entry = by_row[frame.source_index]
            if entry.mbid:
                frame.extra["mbid"] = entry.mbid
            if entry.fold is not None:
                frame.extra["matbench_fold"] = f"fold_{entry.fold}"
        data.rejects.extend(self._reject(item) for item in rows if isinstance(item, BadRow))
        if not any(entry.mbid for entry in entries):
            data.notes.append("neither the official file nor an index: frames have no identifier and no fold")
        return data

    def _reject(self, bad: BadRow) -> FrameFindings:
        finding = Finding(code="malformed", value=None, threshold=None, unit="", message=bad.reason)
        return FrameFindings(source=self.label, source_index=bad.row, formula="", findings=[finding])
