"""Screening of crystals for their dielectric response: one structure or many thousands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from jobflow import Flow, Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.errors import InputError, SettingsError
from fieldflows.inputs import InputStructure
from fieldflows.jobs.evaluate import extra_settings
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.jobs.screening import dielectric_response, screen_chunk
from fieldflows.properties.base import result_key
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.structures import as_structure

if TYPE_CHECKING:
    from fieldflows.backends.base import ModelInfo
    from fieldflows.structures import StructureLike

    Crystal: TypeAlias = StructureLike | InputStructure | OutputReference


@dataclass
class DielectricMaker(Maker):
    """Make the job, or the flow of jobs, that computes ε∞, n, Born charges and, if a model can, ε_ion and modes.

    One structure gives one Job, whose output is a
    :class:`~fieldflows.schemas.dielectric.DielectricDocument`.  A list gives a Flow with one Job per chunk; the
    output of each is a :class:`~fieldflows.schemas.screening.ScreeningDocument` with results and failures, so that
    one broken structure never stops the others.  Each result is also stored, as soon as it is there, in the results
    collection under a key that follows from structure, model and settings: a rerun computes only what is missing.

    Models are looked up when the flow is made, so that a wrong name or an impossible wish shows before anything is
    submitted.

    Attributes:
        name: Name of the jobs.
        model: Model of the field response: a bundled name, a path, or ``sha256:`` and a hash.
        hessian_model: Separate model of forces and Hessian; it also relaxes.
        head: Head of a model with several; the first by default.
        hessian_head: The same of the separate model, which may be another head of the same file.
        settings: Settings of the property.
        relax: How to relax first; None for not at all.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.
        chunk_structures: Largest number of structures in a job.
        chunk_atoms: Largest number of atoms in a job, unless one structure alone has more.
        recompute: Compute even what is stored.
        keep_hessians: Put the Hessians into the additional store ``data``.

    Example:
        >>> from ase.build import bulk
        >>> job = DielectricMaker(model="toy").make(bulk("MgO", "rocksalt", a=4.21))
        >>> job.metadata["formula"]
        'MgO'
    """

    name: str = "dielectric"
    model: str = "dielectric"
    hessian_model: str | None = None
    settings: DielectricSettings = field(default_factory=DielectricSettings)
    relax: RelaxSettings | None = None
    dtype: str = "float64"
    device: str = "cpu"
    chunk_structures: int = 200
    chunk_atoms: int = 4000
    recompute: bool = False
    keep_hessians: bool = False
    head: str | None = None
    hessian_head: str | None = None

    def make(self, structures: Crystal | Sequence[Crystal]) -> Job | Flow:
        """Return the Job of one structure, or the Flow of a list.

        Args:
            structures: An ``ase.Atoms``, a pymatgen ``Structure``, an
                :class:`~fieldflows.inputs.InputStructure`, or the output reference of a job that gives a structure;
                or a list of them.

        Raises:
            CheckpointError: If a model does not exist or is damaged.
            CapabilityError: If the models cannot give what the settings ask for.
            StructureError: If a structure is no periodic crystal.
            InputError: If the list is empty.
        """
        shared = self._shared()
        if not _is_many(structures):
            subject = subject_of(structures)  # type: ignore[arg-type]
            made = dielectric_response(subject, **shared)
            made.name = " ".join(filter(None, (self.name, formula_of(subject))))
            made.update_metadata(self._metadata(shared) | _facts(subject))
            return made
        subjects = [subject_of(item) for item in structures]  # type: ignore[union-attr]
        if not subjects:
            raise InputError("There are no structures to screen.", "Give at least one.")
        jobs = []
        for number, chunk in enumerate(self._chunks(subjects), start=1):
            made = screen_chunk(chunk, keep_hessians=self.keep_hessians, **shared)
            made.name = f"{self.name} chunk {number}"
            made.update_metadata(
                self._metadata(shared)
                | {
                    "formulas": sorted({formula for formula in map(formula_of, chunk) if formula}),
                    "material_ids": [s["material_id"] for s in chunk if s.get("material_id")],
                    "n_structures": len(chunk),
                }
            )
            jobs.append(made)
        return Flow(jobs, output=[made.output for made in jobs], name=f"{self.name} screening")

    def check(self) -> ModelInfo:
        """Return the card of the model, after checking that the models exist and can give what is asked.

        Raises:
            CheckpointError: If a model does not exist or is damaged.
            CapabilityError: If the models cannot give what the settings ask for.
        """
        self._shared()
        return self._resolve()[0][1]

    def keys(self, structures: Sequence[StructureLike | InputStructure]) -> list[str]:
        """Return the keys that the results of these structures will have, in their order.

        With :meth:`fieldflows.store.ResultsCollection.existing` this tells what is still to be computed.
        """
        (_, info), (_, hessian_info) = self._resolve()
        bound = DielectricProperty(self.settings).bind(info, hessian_info)
        extra = extra_settings(self.relax, info, hessian_info)
        return [result_key(bound, subject_of(item)["structure"], info, hessian_info, extra) for item in structures]

    def _resolve(self) -> tuple[tuple[ModelReference, ModelInfo], tuple[ModelReference | None, ModelInfo | None]]:
        """Return references and cards of the model and of the separate one."""
        own = ModelReference.resolve(self.model, self.dtype, self.device, self.head)
        if self.hessian_model is None:
            if self.hessian_head is not None:
                raise SettingsError("hessian_head is for a hessian_model.", "Name the model, the same one if need be.")
            return own, (None, None)
        return own, ModelReference.resolve(self.hessian_model, self.dtype, self.device, self.hessian_head)

    def _shared(self) -> dict[str, Any]:
        (model, info), (hessian, hessian_info) = self._resolve()
        DielectricProperty(self.settings).bind(info, hessian_info)
        if self.relax is not None:
            (hessian_info or info).require(("energy", "forces"), "relaxation")
        return {
            "model": model,
            "hessian_model": hessian,
            "settings": self.settings.model_dump(mode="json"),
            "relax": None if self.relax is None else self.relax.model_dump(mode="json"),
            "recompute": self.recompute,
        }

    def _metadata(self, shared: dict[str, Any]) -> dict[str, Any]:
        hessian = shared["hessian_model"]
        return {
            "task": "dielectric",
            "model": shared["model"].name,
            "model_sha256": shared["model"].sha256,
            "hessian_model_sha256": None if hessian is None else hessian.sha256,
            "code_version": __version__,
        }

    def _chunks(self, subjects: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        chunk: list[dict[str, Any]] = []
        atoms = 0
        for subject in subjects:
            size = 1 if isinstance(subject["structure"], OutputReference) else len(subject["structure"])
            if chunk and (len(chunk) >= self.chunk_structures or atoms + size > self.chunk_atoms):
                yield chunk
                chunk, atoms = [], 0
            chunk.append(subject)
            atoms += size
        if chunk:
            yield chunk


def _is_many(structures: Any) -> bool:
    from ase import Atoms
    from pymatgen.core import Structure

    return not isinstance(structures, Atoms | Structure | InputStructure | OutputReference)


def subject_of(item: Any, names: bool = False) -> dict[str, Any]:
    """Return a crystal as jobs take it: ``structure``, and what is known about it.

    Args:
        item: A structure, an input of a file, or the output of a job.
        names: Let texts pass, which the job looks up.

    Raises:
        StructureError: If it is none.
    """
    if isinstance(item, OutputReference) or (names and isinstance(item, str)):
        return {"structure": item}
    if isinstance(item, InputStructure):
        return {
            "structure": item.structure,
            "material_id": item.material_id,
            "source": item.label,
            "index": item.index,
            "band_gap": item.band_gap,
        }
    return {"structure": as_structure(item)}


def formula_of(subject: dict[str, Any]) -> str | None:
    """Return the reduced formula of a crystal as jobs take it; None if it is not known yet."""
    structure = subject["structure"]
    return None if isinstance(structure, str | OutputReference) else str(structure.composition.reduced_formula)


def _facts(subject: dict[str, Any]) -> dict[str, Any]:
    return {"formula": formula_of(subject), "material_id": subject.get("material_id")}
