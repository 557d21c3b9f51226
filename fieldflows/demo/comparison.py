"""Documents next to published values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fieldflows.demo.crystals import DemoCrystal, PublishedCharge
    from fieldflows.schemas.dielectric import DielectricDocument


@dataclass(frozen=True)
class ChargePair:
    """One component of a Born charge, both ways.

    Attributes:
        published: The published component and its source.
        model: The same component of the document, e.
    """

    published: PublishedCharge
    model: float


@dataclass(frozen=True)
class Comparison:
    """One crystal of the demonstration: what was published and what the model says.

    Attributes:
        crystal: The crystal with its published values.
        document: The document that was computed.
        charges: Born charges, one pair per published component.
    """

    crystal: DemoCrystal
    document: DielectricDocument
    charges: tuple[ChargePair, ...]

    @property
    def refractive_indices(self) -> tuple[float, float] | None:
        """Published and computed n; None where the document has none (a negative ε∞)."""
        if self.document.n is None:
            return None
        return self.crystal.optics.refractive_index, self.document.n

    @property
    def published_range(self) -> tuple[float, float] | None:
        """Smallest and largest published charge, e."""
        values = [pair.published.value for pair in self.charges]
        return (min(values), max(values)) if values else None


@dataclass(frozen=True)
class Score:
    """Agreement of a list of pairs.

    Attributes:
        count: Number of pairs.
        mae: Mean absolute difference.
        bias: Mean difference, model minus published.
        unit: Unit of both.
    """

    count: int
    mae: float
    bias: float
    unit: str


def compare(crystals: Iterable[DemoCrystal], documents: Iterable[DielectricDocument]) -> list[Comparison]:
    """Return the pairs for which a document exists; documents are matched by ``material_id`` and crystal name."""
    by_name = {document.material_id: document for document in documents}
    result = []
    for crystal in crystals:
        document = by_name.get(crystal.name)
        if document is None:
            continue
        tensors = np.array(document.born_effective_charges)
        pairs = tuple(
            ChargePair(charge, charge.pick(tensors[crystal.atom(document.structure, charge)]))
            for charge in crystal.charges
        )
        result.append(Comparison(crystal, document, pairs))
    return result


def score(pairs: Sequence[tuple[float, float]], unit: str) -> Score:
    """Return the agreement of (published, model) pairs."""
    if not pairs:
        return Score(0, float("nan"), float("nan"), unit)
    difference = np.array([model - published for published, model in pairs])
    return Score(len(pairs), float(np.abs(difference).mean()), float(difference.mean()), unit)


def index_pairs(comparisons: Iterable[Comparison]) -> list[tuple[float, float]]:
    """Return (published, model) refractive indices."""
    return [pair for item in comparisons if (pair := item.refractive_indices) is not None]


def charge_pairs(comparisons: Iterable[Comparison]) -> list[tuple[float, float]]:
    """Return (published, model) Born charges, e."""
    return [(pair.published.value, pair.model) for item in comparisons for pair in item.charges]
