"""Jobs of spontaneous polarizations: one polar crystal with its nonpolar one, or many polar crystals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobflow import JobConfig, job

from fieldflows import __version__
from fieldflows.errors import FieldflowsError
from fieldflows.evaluation.independent import with_independent_estimates
from fieldflows.jobs.evaluate import ChunkOutcome, evaluate_chunk
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings, relax_structure
from fieldflows.jobs.screening import as_error, job_results
from fieldflows.jobs.structures import named_structure
from fieldflows.physics.references import is_polar
from fieldflows.properties.base import PropertyInput
from fieldflows.properties.spontaneous_polarization import (
    Nonpolar,
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import FerroelectricScreeningDocument, SpontaneousPolarizationDocument
from fieldflows.structures import as_atoms

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel
    from fieldflows.store.results import ResultsCollection


@job(output_schema=SpontaneousPolarizationDocument, config=JobConfig(expose_store=True))
def spontaneous_polarization(
    polar: Mapping[str, Any],
    nonpolar: Mapping[str, Any] | None,
    model: ModelReference,
    hessian_model: ModelReference | None = None,
    others: Sequence[ModelReference] = (),
    settings: Mapping[str, Any] | None = None,
    relax: Mapping[str, Any] | None = None,
    recompute: bool = False,
) -> SpontaneousPolarizationDocument:
    """Return P_s of one crystal; it is also stored in the results collection.

    Args:
        polar: ``structure`` (pymatgen, or an identifier of the Materials Project) and, if known, ``material_id``,
            ``source``, ``band_gap``.
        nonpolar: The same of the nonpolar crystal; None to have it proposed by symmetry.
        model: Model of the field response.
        hessian_model: Separate model of energies; it also relaxes.
        others: Models for independent estimates.
        settings: Settings of the property, by name.
        relax: Settings of the relaxation; None for none.
        recompute: Compute even what is stored.

    Raises:
        FieldflowsError: If there is no path, or a crystal cannot be computed; of the class that says why.
    """
    energy_model = None if hessian_model is None else hessian_model.open()
    field_model = model.open()
    how = None if relax is None else RelaxSettings(**dict(relax))
    prop = SpontaneousPolarizationProperty(
        SpontaneousPolarizationSettings(**dict(settings or {})), _nonpolar(nonpolar, energy_model or field_model, how)
    )
    outcome = _compute(prop, [_subject(polar)], field_model, energy_model, others, how, recompute)
    if outcome.failures:
        raise as_error(outcome.failures[0])
    (document,) = outcome.documents
    return document  # type: ignore[return-value]


@job(output_schema=FerroelectricScreeningDocument, config=JobConfig(expose_store=True))
def spontaneous_polarizations(
    subjects: Sequence[Mapping[str, Any]],
    model: ModelReference,
    hessian_model: ModelReference | None = None,
    others: Sequence[ModelReference] = (),
    settings: Mapping[str, Any] | None = None,
    relax: Mapping[str, Any] | None = None,
    recompute: bool = False,
) -> FerroelectricScreeningDocument:
    """Return P_s of the polar ones of many crystals, relative to what symmetry proposes for each.

    Args:
        subjects: As ``polar`` in :func:`spontaneous_polarization`.
        model: Model of the field response.
        hessian_model: Separate model of energies; it also relaxes.
        others: Models for independent estimates.
        settings: Settings of the property, by name.
        relax: Settings of the relaxation; None for none.
        recompute: Compute even what is stored.
    """
    prop = SpontaneousPolarizationProperty(SpontaneousPolarizationSettings(**dict(settings or {})))
    known, failures = [], []
    for index, item in enumerate(subjects):
        try:
            known.append(replace(_subject(item), index=item.get("index", index)))
        except FieldflowsError as error:
            failures.append(FailureDocument.from_error(error, "read", index=index, task=prop.name))
    polar = [item for item in known if is_polar(item.structure, prop.settings.symprec)]
    how = None if relax is None else RelaxSettings(**dict(relax))
    energy_model = None if hessian_model is None else hessian_model.open()
    outcome = _compute(prop, polar, model.open(), energy_model, others, how, recompute)
    return FerroelectricScreeningDocument(
        results=tuple(outcome.documents),  # type: ignore[arg-type]
        failures=(*failures, *outcome.failures),
        n_structures=len(subjects),
        n_not_polar=len(known) - len(polar),
        n_computed=outcome.n_computed,
        n_reused=outcome.n_reused,
        n_duplicates=outcome.n_duplicates,
        code_version=__version__,
    )


def _compute(
    prop: SpontaneousPolarizationProperty,
    subjects: Sequence[PropertyInput],
    model: FieldModel,
    hessian_model: FieldModel | None,
    others: Sequence[ModelReference],
    relax: RelaxSettings | None,
    recompute: bool,
) -> ChunkOutcome:
    results = job_results()
    outcome = evaluate_chunk(prop, subjects, model, hessian_model, results=results, relax=relax, recompute=recompute)
    opened = [item.open() for item in others]
    outcome.documents = [_with_others(item, prop, opened, results) for item in outcome.documents]
    return outcome


def _with_others(
    document: Any,
    prop: SpontaneousPolarizationProperty,
    others: Sequence[FieldModel],
    results: ResultsCollection | None,
) -> Any:
    """Return the document with independent estimates; one that was stored with them comes back as it is."""
    if [item.model.sha256 for item in document.independent] == [item.info.sha256 for item in others]:
        return document
    made = with_independent_estimates(document, prop, others)
    if results is not None:
        results.put([made])
    return made


def _subject(item: Mapping[str, Any]) -> PropertyInput:
    structure = item["structure"]
    if not isinstance(structure, str):
        return PropertyInput(**dict(item))
    found = named_structure(structure)
    return PropertyInput(found.structure, material_id=found.material_id, source=structure, band_gap=found.band_gap)


def _nonpolar(item: Mapping[str, Any] | None, model: FieldModel, relax: RelaxSettings | None) -> Nonpolar | None:
    """Return the nonpolar end, relaxed if that is asked for: it keeps its symmetry, since forces do."""
    if item is None:
        return None
    subject = _subject(item)
    if relax is None:
        return Nonpolar(as_atoms(subject.structure), subject.material_id)
    structure, record = relax_structure(subject.structure, model, relax)
    return Nonpolar(structure, subject.material_id, subject.structure, record)
