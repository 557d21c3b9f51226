"""The demonstration itself: crystals through the screening flow into a store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobflow import JobStore

    from fieldflows.demo.crystals import DemoCrystal
    from fieldflows.schemas.dielectric import DielectricDocument
    from fieldflows.schemas.failure import FailureDocument

CRYSTALS_PER_JOB = 2
"""Small chunks, so that the progress bar moves."""


def screen_crystals(
    crystals: Sequence[DemoCrystal],
    model: str,
    store: JobStore,
    on_result: Callable[[Any], None] | None = None,
) -> tuple[list[DielectricDocument], list[FailureDocument]]:
    """Compute the electronic response of the crystals with jobflow, in this process, and store the documents.

    Documents carry the name of the crystal as ``material_id`` and the reference of the structure as ``source``.
    What the store holds already, for the same model and version, is not computed again.

    Args:
        crystals: What to compute.
        model: Bundled name or path of a model.
        store: Where documents go.
        on_result: Called with each document or failure.

    Raises:
        CheckpointError: If the model does not exist or is damaged.
        StoreError: If a document cannot be stored.
    """
    from jobflow import run_locally

    from fieldflows.demo.crystals import load_sources
    from fieldflows.flows.screening import DielectricMaker
    from fieldflows.inputs import InputStructure
    from fieldflows.jobs.evaluate import reporting
    from fieldflows.properties.dielectric import DielectricSettings
    from fieldflows.schemas.dielectric import DielectricDocument

    sources = load_sources()
    inputs = [
        InputStructure(structure=crystal.primitive(), source=sources[crystal.structure], material_id=crystal.name)
        for crystal in crystals
    ]
    maker = DielectricMaker(
        name="demo", model=model, settings=DielectricSettings(ionic=False), chunk_structures=CRYSTALS_PER_JOB
    )
    documents: list[DielectricDocument] = []
    failures: list[FailureDocument] = []

    def take(item: Any) -> None:
        if isinstance(item, DielectricDocument):
            documents.append(item)
        else:
            failures.append(item)
        if on_result is not None:
            on_result(item)

    with reporting(take), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some jobs are not connected")
        warnings.filterwarnings("ignore", message="cd is deprecated", category=FutureWarning)
        run_locally(maker.make(inputs), store=store, log=False, ensure_success=True, raise_immediately=True)
    return documents, failures
