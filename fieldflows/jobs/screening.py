"""Jobs of a screening: one crystal, or one chunk of crystals with its failures inside."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB, JobConfig, job

import fieldflows.errors
from fieldflows import __version__
from fieldflows.errors import EvaluationError, FieldflowsError, StoreError
from fieldflows.jobs.evaluate import ChunkOutcome, evaluate_chunk
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings
from fieldflows.properties.base import PropertyInput, model_card
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.screening import HessianRecord, ScreeningDocument

if TYPE_CHECKING:
    from fieldflows.backends.base import Response
    from fieldflows.store.results import ResultsCollection

_LOGGER = logging.getLogger(__name__)

HESSIAN_KEY = "hessian"
"""Key of the output that goes to the additional store ``data``."""


@job(output_schema=DielectricDocument, config=JobConfig(expose_store=True))
def dielectric_response(
    subject: Mapping[str, Any],
    model: ModelReference,
    hessian_model: ModelReference | None = None,
    settings: Mapping[str, Any] | None = None,
    relax: Mapping[str, Any] | None = None,
    recompute: bool = False,
) -> DielectricDocument:
    """Return the dielectric document of one crystal; it is also stored in the results collection.

    Args:
        subject: ``structure`` (pymatgen) and, if known, ``material_id``, ``source``, ``index``, ``band_gap``.
        model: Model of the field response.
        hessian_model: Separate model of forces and Hessian.
        settings: Settings of the property, by name.
        relax: Settings of the relaxation; None for none.
        recompute: Compute even what is stored.

    Raises:
        FieldflowsError: If the crystal cannot be computed; of the class that says why.
    """
    outcome = _run([subject], model, hessian_model, settings, relax, recompute, False)
    if outcome.failures:
        raise as_error(outcome.failures[0])
    (document,) = outcome.documents
    return document  # type: ignore[return-value]


@job(output_schema=ScreeningDocument, config=JobConfig(expose_store=True), data=[HESSIAN_KEY])
def screen_chunk(
    subjects: Sequence[Mapping[str, Any]],
    model: ModelReference,
    hessian_model: ModelReference | None = None,
    settings: Mapping[str, Any] | None = None,
    relax: Mapping[str, Any] | None = None,
    recompute: bool = False,
    keep_hessians: bool = False,
) -> ScreeningDocument:
    """Return results and failures of a chunk of crystals; results also go to the results collection, one by one.

    Args:
        subjects: As in :func:`dielectric_response`.
        model: Model of the field response.
        hessian_model: Separate model of forces and Hessian.
        settings: Settings of the property, by name.
        relax: Settings of the relaxation; None for none.
        recompute: Compute even what is stored.
        keep_hessians: Put the Hessians into the additional store ``data``.
    """
    outcome = _run(subjects, model, hessian_model, settings, relax, recompute, keep_hessians)
    separate = None if hessian_model is None else model_card(hessian_model.open())
    return ScreeningDocument(
        results=tuple(outcome.documents),  # type: ignore[arg-type]
        failures=tuple(outcome.failures),
        hessians=tuple(_hessian_record(key, response) for key, response in outcome.hessians.items()),
        n_structures=len(subjects),
        n_computed=outcome.n_computed,
        n_reused=outcome.n_reused,
        n_duplicates=outcome.n_duplicates,
        model=model_card(model.open()),
        hessian_model=separate,
        code_version=__version__,
    )


def _run(
    subjects: Sequence[Mapping[str, Any]],
    model: ModelReference,
    hessian_model: ModelReference | None,
    settings: Mapping[str, Any] | None,
    relax: Mapping[str, Any] | None,
    recompute: bool,
    keep_hessians: bool,
) -> ChunkOutcome:
    return evaluate_chunk(
        DielectricProperty(DielectricSettings(**dict(settings or {}))),
        [PropertyInput(**dict(subject)) for subject in subjects],
        model.open(),
        None if hessian_model is None else hessian_model.open(),
        results=job_results(),
        relax=None if relax is None else RelaxSettings(**dict(relax)),
        recompute=recompute,
        keep_hessians=keep_hessians,
    )


def _hessian_record(key: str, response: Response) -> HessianRecord:
    use = response.symmetry
    atoms = None if use is None else tuple(use.representatives.tolist())
    return HessianRecord(key=key, hessian=response.get("hessian").tolist(), atoms=atoms)


def job_results() -> ResultsCollection | None:
    """Return the results collection of the store that the job runs with; None if it has none.

    The workers of jobflow-remote have no access to the database of the project: they write outputs to files, for the
    runner to store.  Results are in that output in any case, and ``fieldflows.store.publish`` copies them from there;
    a store that ``FIELDFLOWS_STORE`` names on the worker gets them at once.
    """
    from fieldflows.store.results import ResultsCollection

    store = CURRENT_JOB.store
    try:
        return None if store is None else ResultsCollection.of(store)
    except StoreError as error:
        _LOGGER.debug("%s", error)
        return _results_of_worker()


def _results_of_worker() -> ResultsCollection | None:
    from fieldflows.store import STORE_VARIABLE, ResultsCollection, get_store

    if not os.environ.get(STORE_VARIABLE):
        _LOGGER.warning("Results travel in the output of the job; fieldflows.store.publish copies them from there.")
        return None
    try:
        return ResultsCollection.of(get_store())
    except StoreError as error:
        _LOGGER.warning("Results travel in the output of the job only: %s", error)
        return None


def as_error(failure: FailureDocument) -> FieldflowsError:
    """Return the error that a record was made of, of its class if that is one of ours."""
    kind = getattr(fieldflows.errors, failure.error_type, EvaluationError)
    if not (isinstance(kind, type) and issubclass(kind, FieldflowsError)):
        kind = EvaluationError
    return kind(failure.message)
