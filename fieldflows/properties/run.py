"""Carrying out a property for many structures: pooled evaluations, and isolation of what fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.backends.base import FieldModel, Response
from fieldflows.backends.symmetric import SymmetrySettings, evaluate_each
from fieldflows.errors import EvaluationError, UnknownElementError
from fieldflows.properties.base import Context, Evaluation, Plan, Property, PropertyInput, model_card, result_key
from fieldflows.schemas.common import Document
from fieldflows.schemas.failure import FailureDocument
from fieldflows.structures import as_atoms

if TYPE_CHECKING:
    from fieldflows.structures import StructureLike

MAX_BATCH_ATOMS = {"cpu": 512, "gpu": 20_000}
"""Atoms handed to a model together, unless one structure alone has more; the model cuts them into its own batches."""
MAX_BATCH_STRUCTURES = {"cpu": 64, "gpu": 1000}
"""Structures handed to a model together."""

Outcome = Document | FailureDocument


@dataclass
class _Task:
    """One structure on its way."""

    index: int
    subject: PropertyInput
    plan: Plan
    n_atoms: int
    responses: dict[int, Response] = field(default_factory=dict)
    failure: FailureDocument | None = None


def run_property(
    prop: Property,
    structures: Sequence[StructureLike | PropertyInput],
    model: FieldModel,
    hessian_model: FieldModel | None = None,
    *,
    extra_settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    max_batch_atoms: int | None = None,
    max_batch_structures: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_result: Callable[[int, Outcome], None] | None = None,
    on_responses: Callable[[int, Sequence[Response]], None] | None = None,
) -> list[Outcome]:
    """Return one document, or one record of a failure, for each structure, in the same order.

    Evaluations of many structures are pooled into batches.  If a batch fails it is halved until the structures
    that fail stand alone; all others get their documents.  An interrupt (Ctrl-C) stops at once; results so far
    have been handed to ``on_result``.

    Args:
        prop: The property; it is bound to the models here.
        structures: Crystals, or :class:`PropertyInput` with what else is known about them.
        model: Model of the field response.
        hessian_model: Separate model of forces and Hessian.
        extra_settings: Settings of the steps around the property, in JSON types; part of key and provenance.
        seed: Seed to record.
        max_batch_atoms: Atoms handed to a model together; by its device if not given.
        max_batch_structures: Structures handed to a model together; by its device if not given.
        progress: Called with (done, total) after each structure.
        on_result: Called with (index, outcome) as soon as an outcome is there; its errors are not caught.
        on_responses: Called with (index, responses of the plan) before a document is made of them.

    Raises:
        CapabilityError: If the models cannot give what the settings ask for, whatever the structure.
    """
    bound = prop.bind(model.info, None if hessian_model is None else hessian_model.info)
    cards = (model_card(model), None if hessian_model is None else model_card(hessian_model))
    extra = dict(extra_settings or {})
    device = "cpu" if cards[0].device.startswith("cpu") else "gpu"
    max_batch_atoms = max_batch_atoms or MAX_BATCH_ATOMS[device]
    max_batch_structures = max_batch_structures or MAX_BATCH_STRUCTURES[device]
    outcomes: dict[int, Outcome] = {}
    total = len(structures)

    def finish(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        if on_result is not None:
            on_result(index, outcome)
        if progress is not None:
            progress(len(outcomes), total)

    def failure(error: Exception, stage: str, index: int, subject: PropertyInput) -> FailureDocument:
        return _failure(error, stage, index, subject, bound, cards, extra)

    pending: list[_Task] = []

    def flush() -> None:
        batch, pending[:] = list(pending), []
        for role in ("field", "hessian"):
            chosen = hessian_model if role == "hessian" and hessian_model is not None else model
            _evaluate(batch, role, chosen, failure)
        for task in batch:
            if task.failure is not None:
                finish(task.index, task.failure)
                continue
            context = Context(task.subject, *cards, extra_settings=extra, seed=seed)
            responses = [task.responses[k] for k in range(len(task.plan.evaluations))]
            if on_responses is not None:
                on_responses(task.index, responses)
            try:
                outcome: Outcome = bound.analyse(task.subject.structure, responses, context)
            except Exception as error:
                outcome = failure(error, "analyse", task.index, task.subject)
            finish(task.index, outcome)

    for index, item in enumerate(structures):
        subject = item if isinstance(item, PropertyInput) else PropertyInput(item)
        if subject.index is None:
            subject = replace(subject, index=index)
        try:
            plan = bound.plan(subject.structure)
            atoms = as_atoms(subject.structure)
            for known in (model, hessian_model):
                if known is not None:
                    _check_elements(set(atoms.get_chemical_symbols()), known)
        except Exception as error:
            finish(index, failure(error, "plan", index, subject))
            continue
        task = _Task(index, subject, plan, len(atoms))
        atoms_so_far = sum(other.n_atoms for other in pending)
        if pending and (atoms_so_far + task.n_atoms > max_batch_atoms or len(pending) >= max_batch_structures):
            flush()
        pending.append(task)
    flush()
    return [outcomes[index] for index in range(total)]


def _check_elements(symbols: set[str], model: FieldModel) -> None:
    unknown = sorted(symbols - set(model.info.elements))
    if unknown:
        raise UnknownElementError(
            f"Model {model.info.name!r} does not know {', '.join(unknown)} ({len(model.info.elements)} known).",
            "Leave the structure out, or use a model trained on these elements.",
        )


def _failure(
    error: Exception,
    stage: str,
    index: int,
    subject: PropertyInput,
    prop: Property,
    cards: tuple[Any, Any],
    extra: Mapping[str, Any],
) -> FailureDocument:
    formula, key = None, None
    original = subject.structure if subject.input_structure is None else subject.input_structure
    try:
        from pymatgen.core import Composition

        formula = Composition(as_atoms(original).get_chemical_formula()).reduced_formula
        key = result_key(prop, original, *cards, extra_settings=extra)
    except Exception:  # whatever is wrong with the structure is already in `error`
        key = None
    return FailureDocument.from_error(
        error,
        stage,
        source=subject.source,
        index=subject.index if subject.index is not None else index,
        formula=formula,
        material_id=subject.material_id,
        task=prop.name,
        key=key,
    )


def _evaluate(
    batch: Sequence[_Task],
    role: str,
    model: FieldModel,
    failure: Callable[[Exception, str, int, PropertyInput], FailureDocument],
) -> None:
    """Answer all evaluations of one role, pooled by what they ask for."""
    pools: dict[tuple[tuple[str, ...], SymmetrySettings | None], list[tuple[_Task, int, Evaluation]]] = {}
    for task in batch:
        for position, evaluation in enumerate(task.plan.evaluations):
            if evaluation.role == role and task.failure is None:
                key = (evaluation.observables, evaluation.symmetry)
                pools.setdefault(key, []).append((task, position, evaluation))
    for (observables, symmetry), requests in pools.items():
        answers = evaluate_each(
            model,
            [evaluation.structure for _, _, evaluation in requests],
            np.array([evaluation.field for _, _, evaluation in requests]),
            observables,
            symmetry,
            primitive_hessian=True,
        )
        for (task, position, _), answer in zip(requests, answers, strict=True):
            if isinstance(answer, Response):
                answer = _checked(answer, observables)
            if isinstance(answer, Exception):
                task.failure = task.failure or failure(answer, "evaluate", task.index, task.subject)
            else:
                task.responses[position] = answer


def _checked(response: Response, observables: Sequence[str]) -> Response | EvaluationError:
    """Return the response, or an error if it lacks what was asked for or holds what is not finite."""
    try:
        bad = [name for name in observables if not np.isfinite(response.get(name)).all()]
    except EvaluationError as error:
        return error
    if bad:
        return EvaluationError(
            f"The model gave values that are not finite for {', '.join(bad)}.",
            "The structure is probably far from anything that the model was trained on.",
        )
    return response
