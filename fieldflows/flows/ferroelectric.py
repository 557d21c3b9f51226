"""Spontaneous polarizations as jobs: a polar crystal and its nonpolar parent, or many polar crystals alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from jobflow import Flow, Job, Maker, OutputReference

from fieldflows import __version__
from fieldflows.errors import InputError
from fieldflows.flows.screening import formula_of, subject_of
from fieldflows.inputs import InputStructure
from fieldflows.jobs.ferroelectric import spontaneous_polarization, spontaneous_polarizations
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.properties.spontaneous_polarization import (
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)

if TYPE_CHECKING:
    from fieldflows.backends.base import ModelInfo
    from fieldflows.structures import StructureLike

    End: TypeAlias = StructureLike | InputStructure | OutputReference | str


@dataclass
class SpontaneousPolarizationMaker(Maker):
    """Make the job that computes P_s of a polar crystal, with branch, path, energies and what to distrust.

    The ends are structures, outputs of other jobs, or identifiers of the Materials Project.  Without a nonpolar end the
    nearest one that symmetry proposes is taken, and flagged.  The output is a
    :class:`~fieldflows.schemas.ferroelectric.SpontaneousPolarizationDocument`, which is stored in the results
    collection too.

    Attributes:
        name: Name of the jobs.
        model: Model of the field response.
        other_models: Models whose Born charges give independent estimates of P_s; their spread is the uncertainty.
        hessian_model: Separate model of energies along the path; it also relaxes.
        settings: Settings of the property.
        relax: How to relax both ends first; None for not at all.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.
        head: Head of a model with several; the first by default.
        hessian_head: The same of the separate model.
        chunk_structures: Largest number of crystals in a job of :meth:`screen`.
        recompute: Compute even what is stored.

    Example:
        >>> from fieldflows.testing.structures import tetragonal_batio3
        >>> job = SpontaneousPolarizationMaker(model="toy", other_models=()).make(tetragonal_batio3())
        >>> job.metadata["formula"]
        'BaTiO3'
    """

    name: str = "spontaneous polarization"
    model: str = "ferroelectric"
    other_models: Sequence[str] = ("dielectric",)
    hessian_model: str | None = None
    settings: SpontaneousPolarizationSettings = field(default_factory=SpontaneousPolarizationSettings)
    relax: RelaxSettings | None = None
    dtype: str = "float64"
    device: str = "cpu"
    head: str | None = None
    hessian_head: str | None = None
    chunk_structures: int = 50
    recompute: bool = False

    def make(self, polar: End, nonpolar: End | None = None) -> Job:
        """Return the job of one crystal.

        Args:
            polar: The polar crystal.
            nonpolar: The nonpolar one; None to have it proposed by symmetry.

        Raises:
            CheckpointError: If a model does not exist or is damaged.
            CapabilityError: If the models cannot give what the settings ask for.
        """
        subject = subject_of(polar, names=True)
        made = spontaneous_polarization(
            subject, None if nonpolar is None else subject_of(nonpolar, names=True), **self._shared()
        )
        made.name = " ".join(filter(None, (self.name, formula_of(subject))))
        made.update_metadata(self._metadata() | {"formula": formula_of(subject), "material_id": _identifier(subject)})
        return made

    def screen(self, structures: Sequence[End]) -> Flow:
        """Return the flow that computes P_s of the polar ones of many crystals, each against a proposed reference.

        Crystals whose point group is not polar are counted and left out; one that fails stops no other.

        Args:
            structures: Crystals.

        Raises:
            InputError: If there are none.
        """
        subjects = [subject_of(item, names=True) for item in structures]
        if not subjects:
            raise InputError("There are no structures to screen.", "Give at least one.")
        shared = self._shared()
        jobs: list[Job] = []
        for start in range(0, len(subjects), self.chunk_structures):
            chunk = subjects[start : start + self.chunk_structures]
            made = spontaneous_polarizations(chunk, **shared)
            made.name = f"{self.name} chunk {len(jobs) + 1}"
            made.update_metadata(self._metadata() | {"n_structures": len(chunk)})
            jobs.append(made)
        return Flow(jobs, output=[made.output for made in jobs], name=f"{self.name} screening")

    def check(self) -> ModelInfo:
        """Return the card of the model, after checking that the models exist and can give what is asked.

        Raises:
            CheckpointError: If a model does not exist or is damaged.
            CapabilityError: If the models cannot give what the settings ask for.
        """
        self._shared()
        return ModelReference.resolve(self.model, self.dtype, self.device, self.head)[1]

    def _shared(self) -> dict[str, Any]:
        model, info = ModelReference.resolve(self.model, self.dtype, self.device, self.head)
        hessian, hessian_info = None, None
        if self.hessian_model is not None:
            hessian, hessian_info = ModelReference.resolve(
                self.hessian_model, self.dtype, self.device, self.hessian_head
            )
        prop = SpontaneousPolarizationProperty(self.settings)
        prop.bind(info, hessian_info)
        if self.relax is not None:
            (hessian_info or info).require(("energy", "forces"), "relaxation")
        others = []
        for name in self.other_models:
            reference, other = ModelReference.resolve(name, self.dtype, self.device)
            prop.bind(other)
            if other.sha256 != info.sha256:
                others.append(reference)
        return {
            "model": model,
            "hessian_model": hessian,
            "others": others,
            "settings": self.settings.model_dump(mode="json"),
            "relax": None if self.relax is None else self.relax.model_dump(mode="json"),
            "recompute": self.recompute,
        }

    def _metadata(self) -> dict[str, Any]:
        reference, info = ModelReference.resolve(self.model, self.dtype, self.device, self.head)
        return {
            "task": "spontaneous_polarization",
            "model": reference.name,
            "model_sha256": info.sha256,
            "code_version": __version__,
        }


def _identifier(subject: dict[str, Any]) -> str | None:
    structure = subject["structure"]
    found = structure if isinstance(structure, str) else subject.get("material_id")
    return None if found is None else str(found)
