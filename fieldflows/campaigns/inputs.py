"""The crystals of a campaign from wherever its file says: the Materials Project, files, datasets, earlier campaigns."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.config import InputSet
from fieldflows.campaigns.items import Item
from fieldflows.errors import InputError
from fieldflows.inputs import InputStructure, read_structures
from fieldflows.schemas.failure import FailureDocument

if TYPE_CHECKING:
    from jobflow import JobStore

Report = Callable[[str, int, int], None]
"""Called with (what is done, done, all)."""


@dataclass
class Found:
    """What the inputs of a campaign hold.

    Attributes:
        items: The crystals.
        failures: What could not be read, and why.
        counts: Crystals of each input, by what it is.
    """

    items: list[Item] = field(default_factory=list)
    failures: list[FailureDocument] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def find_crystals(inputs: Sequence[InputSet], store: JobStore | None, report: Report | None = None) -> Found:
    """Return the crystals of all inputs, in order; what cannot be read is reported and does not stop the others.

    Args:
        inputs: The inputs.
        store: Where earlier campaigns are; None if there is none yet.
        report: Called while it goes on.

    Raises:
        ServiceError: If the Materials Project cannot be asked.
        InputError: If an input holds nothing at all.
    """
    report = report or (lambda what, done, total: None)
    found = Found()
    for position, given in enumerate(inputs, start=1):
        before = len(found.items)
        failed = len(found.failures)
        for crystal, reference in _crystals(given, store, found.failures, report):
            if given.limit is not None and len(found.items) - before >= given.limit:
                break
            found.items.append(Item.of(len(found.items), crystal, reference))
        count = len(found.items) - before
        found.counts[f"{position}. {given.way}"] = count
        if not count and len(found.failures) == failed:
            raise InputError(f"Input {position} ({given.way}) holds no crystal.", "Check names, patterns and filters.")
    return found


Crystal = tuple[InputStructure, dict[str, Any] | None]


def _crystals(
    given: InputSet, store: JobStore | None, failures: list[FailureDocument], report: Report
) -> Iterator[Crystal]:
    if given.way == "files":
        return _from_files(given, failures, report)
    if given.way in ("mp_ids", "mp_query"):
        from fieldflows.campaigns.materials_project import crystals_of_mp

        return crystals_of_mp(given, failures, report)
    if given.way == "dataset":
        return _from_dataset(given, failures)
    return _from_campaign(given, store, failures)


def _from_files(given: InputSet, failures: list[FailureDocument], report: Report) -> Iterator[Crystal]:
    patterns = (given.files,) if isinstance(given.files, str) else given.files or ()
    paths: list[str] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        if not matches:
            raise InputError(
                f"No file matches {pattern}.", "Check the pattern; a relative one starts at the campaign file's folder."
            )
        paths += [path for path in matches if not Path(path).is_dir()] or matches
    for number, path in enumerate(dict.fromkeys(paths), start=1):
        structures, problems = read_structures([path])
        failures += problems
        for crystal in structures:
            yield crystal, None
        report("reading files", number, len(paths))


def _from_dataset(given: InputSet, failures: list[FailureDocument]) -> Iterator[Crystal]:
    from fieldflows.jobs.artifacts import open_dataset

    dataset = open_dataset(given.dataset)
    subsets = ("train", "valid", "test") if given.subset == "all" else (given.subset,)
    for subset in subsets:
        for position, frame in enumerate(dataset.subset(subset)):
            source = f"{frame.source}#{frame.source_index} ({subset})"
            identifier = frame.extra.get("material_id")
            crystal = checked(frame.atoms, source, position, failures, None if identifier is None else str(identifier))
            if crystal is not None:
                yield crystal, None


def _from_campaign(given: InputSet, store: JobStore | None, failures: list[FailureDocument]) -> Iterator[Crystal]:
    from fieldflows.campaigns.conditions import Condition
    from fieldflows.campaigns.records import Campaigns, Chunks
    from fieldflows.schemas.common import structure_from_dict
    from fieldflows.store import ResultsCollection

    assert given.campaign is not None
    if store is None:
        raise InputError(f"There is no campaign {given.campaign!r}: the store does not exist yet.")
    manifest = Campaigns.of(store).require(given.campaign)
    condition = Condition.of(given.where)
    chunks, results = Chunks.of(store), ResultsCollection.of(store)
    last_first = [stage["name"] for stage in reversed(manifest["stages"])]
    for number in chunks.numbers(given.campaign):
        items = chunks.items(given.campaign, number)
        keys = [key for item in items for key in item.keys.values()]
        rows = {row["key"]: row for row in results.fetch(keys)}
        for item in items:
            known = [rows[item.keys[name]] for name in last_first if item.keys.get(name) in rows]
            merged = dict(item.facts)
            for row in reversed(known):
                merged |= row
            if not known or not condition.holds(merged):
                continue
            structure = item.atoms() if given.structure == "input" else structure_from_dict(known[0]["structure"])
            source = f"campaign {given.campaign}#{item.index}"
            crystal = checked(structure, source, item.index, failures, item.material_id, item.band_gap)
            if crystal is not None:
                yield crystal, item.reference


def checked(
    structure: Any,
    source: str,
    index: int,
    failures: list[FailureDocument],
    material_id: str | None = None,
    band_gap: float | None = None,
) -> InputStructure | None:
    """Return a crystal as an input, or None after noting why it cannot be computed."""
    from fieldflows.structures import as_atoms, as_structure, check_structure

    try:
        check_structure(structure)
        plain = as_structure(as_atoms(structure))
    except Exception as error:  # one broken crystal must not stop the others
        failures.append(FailureDocument.from_error(error, "read", source=source, index=index, material_id=material_id))
        return None
    return InputStructure(plain, source, index, material_id, band_gap)


def from_structures(structures: Sequence[Any]) -> Found:
    """Return the crystals of a list: ``ase.Atoms``, pymatgen ``Structure`` or ``InputStructure``."""
    found = Found()
    for position, structure in enumerate(structures):
        if isinstance(structure, InputStructure):
            crystal: InputStructure | None = structure
        else:
            crystal = checked(structure, f"crystal {position}", position, found.failures)
        if crystal is not None:
            found.items.append(Item.of(len(found.items), crystal))
    found.counts["1. structures"] = len(found.items)
    return found
