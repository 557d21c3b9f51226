"""A property for a chunk of structures: what is stored is reused, what is new is stored at once, what fails is named.

This is what runs inside a screening job, and nothing here knows jobflow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fieldflows import __version__
from fieldflows.jobs.relax import RelaxSettings, relax_structure
from fieldflows.properties.base import Property, PropertyInput, covers, result_key
from fieldflows.properties.run import MAX_BATCH_STRUCTURES, run_property
from fieldflows.schemas.common import Document
from fieldflows.schemas.failure import FailureDocument
from fieldflows.structures import as_atoms

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel, ModelInfo, Response
    from fieldflows.store.results import ResultsCollection

TOGETHER = 8
"""Structures that are relaxed, or evaluated on a CPU, before they are stored; an interrupt loses at most these."""

Outcome = Document | FailureDocument
Report = Callable[[Outcome], None]

_REPORT: ContextVar[Report | None] = ContextVar("fieldflows_report", default=None)


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Within the block, call ``report`` with each document or failure as soon as it is there (and stored)."""
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


@dataclass
class ChunkOutcome:
    """What became of a chunk.

    Attributes:
        documents: One document per distinct structure, in the order of the input.
        failures: One record per structure that failed.
        n_computed: Documents that are new.
        n_reused: Documents that were stored before.
        n_duplicates: Structures equal to an earlier one.
        hessians: Responses with Hessians by document key, of new documents, if kept.
    """

    documents: list[Document] = field(default_factory=list)
    failures: list[FailureDocument] = field(default_factory=list)
    n_computed: int = 0
    n_reused: int = 0
    n_duplicates: int = 0
    hessians: dict[str, Response] = field(default_factory=dict)


def evaluate_chunk(
    prop: Property,
    subjects: Sequence[PropertyInput],
    model: FieldModel,
    hessian_model: FieldModel | None = None,
    *,
    results: ResultsCollection | None = None,
    relax: RelaxSettings | None = None,
    recompute: bool = False,
    keep_hessians: bool = False,
) -> ChunkOutcome:
    """Return documents and failures of a chunk; a rerun after any interruption goes on where it stopped.

    Args:
        prop: The property.
        subjects: The structures, with what is known about them.
        model: Model of the field response.
        hessian_model: Separate model of forces and Hessian; it also relaxes.
        results: Where each document is stored as soon as it is there, and looked up before.
        relax: How to relax first; None for not at all.
        recompute: Compute even what is stored.
        keep_hessians: Return the Hessians too.

    Raises:
        CapabilityError: If the models cannot give what is asked, whatever the structure.
        StoreError: If a document cannot be stored.
    """
    bound = prop.bind(model.info, None if hessian_model is None else hessian_model.info)
    if relax is not None:
        (hessian_model or model).info.require(("energy", "forces"), "relaxation")
    extra = extra_settings(relax, model.info, None if hessian_model is None else hessian_model.info)
    outcome = ChunkOutcome()
    report = _REPORT.get() or (lambda _: None)

    fresh: dict[str, PropertyInput] = {}
    order: dict[str, Document | None] = {}
    for index, subject in enumerate(subjects):
        subject = replace(subject, index=index) if subject.index is None else subject
        try:
            key = result_key(
                bound, subject.structure, model.info, None if hessian_model is None else hessian_model.info, extra
            )
        except Exception as error:  # the structure is broken; the others go on
            _fail(outcome, report, error, "plan", subject, bound.name)
            continue
        if key in fresh:
            outcome.n_duplicates += 1
            continue
        fresh[key], order[key] = subject, None

    if results is not None and not recompute:
        for key, document in _stored(bound, fresh, results).items():
            order[key] = document
            del fresh[key]
            outcome.n_reused += 1
            report(document)

    def take(key_of: Sequence[str], position: int, item: Outcome) -> None:
        if isinstance(item, FailureDocument):
            outcome.failures.append(item)
        else:
            if results is not None:
                results.put([item])
            order[key_of[position]] = item
            outcome.n_computed += 1
        report(item)

    def keep(key_of: Sequence[str], position: int, responses: Sequence[Response]) -> None:
        for response in responses:
            if response.hessian is not None:
                outcome.hessians[key_of[position]] = response

    on_cpu = str(getattr(model, "device", "cpu")).startswith("cpu")
    batch = TOGETHER if on_cpu else MAX_BATCH_STRUCTURES["gpu"]
    keys = list(fresh)
    step = max(len(keys), 1) if relax is None else TOGETHER
    for start in range(0, len(keys), step):
        part, ready = [], []
        for key in keys[start : start + step]:
            try:
                ready.append(_relaxed(fresh[key], hessian_model or model, relax))
                part.append(key)
            except Exception as error:  # one structure that cannot be relaxed must not stop the others
                _fail(outcome, report, error, "relax", fresh[key], bound.name, key)
        run_property(
            prop,
            ready,
            model,
            hessian_model,
            extra_settings=extra,
            max_batch_structures=batch,
            on_result=partial(take, part),
            on_responses=partial(keep, part) if keep_hessians else None,
        )
    outcome.documents = [document for document in order.values() if document is not None]
    return outcome


def extra_settings(
    relax: RelaxSettings | None, model: ModelInfo | None = None, hessian_model: ModelInfo | None = None
) -> dict[str, Any]:
    """Return what besides the property's own settings and the models' files decides a result, in JSON types.

    Default heads do not count, so that results of models with one head keep their keys.
    """
    extra: dict[str, Any] = {} if relax is None else {"relax": relax.model_dump(mode="json")}
    for name, info in (("head", model), ("hessian_head", hessian_model)):
        if info is not None and info.chosen_head is not None:
            extra[name] = info.chosen_head
    return extra


def _relaxed(subject: PropertyInput, model: FieldModel, relax: RelaxSettings | None) -> PropertyInput:
    if relax is None:
        return subject
    structure, record = relax_structure(subject.structure, model, relax)
    return replace(subject, structure=structure, relaxation=record, input_structure=subject.structure)


def _stored(prop: Property, fresh: Mapping[str, PropertyInput], results: ResultsCollection) -> dict[str, Document]:
    """Return the stored documents that may stand for a new computation."""
    found = {}
    for row in results.fetch(list(fresh)):
        try:
            document = prop.document.from_json_dict(row)
        except Exception:  # written by another version: computed anew, and replaced
            continue
        if not covers(prop, row):  # it lacks a part that is asked for now
            continue
        subject = fresh[row["key"]]
        facts = {name: getattr(subject, name) for name in ("material_id", "band_gap", "reference")}
        same_facts = all(value is None or value == getattr(document, name, None) for name, value in facts.items())
        if same_facts and row["provenance"]["code_version"] == __version__:
            found[row["key"]] = document
    return found


def _fail(
    outcome: ChunkOutcome,
    report: Report,
    error: Exception,
    stage: str,
    subject: PropertyInput,
    task: str,
    key: str | None = None,
) -> None:
    try:
        formula: str | None = as_atoms(subject.structure).get_chemical_formula(empirical=True)
    except Exception:  # the structure may be what is broken
        formula = None
    record = FailureDocument.from_error(
        error,
        stage,
        source=subject.source,
        index=subject.index,
        formula=formula,
        material_id=subject.material_id,
        task=task,
        key=key,
    )
    outcome.failures.append(record)
    report(record)
