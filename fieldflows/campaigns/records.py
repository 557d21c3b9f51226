"""What the store keeps of a campaign: one manifest, its chunks with all crystals, and how far the workers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.items import Item
from fieldflows.errors import InputError, suggestion
from fieldflows.store.collections import KeyedCollection, sibling

if TYPE_CHECKING:
    from jobflow import JobStore

CAMPAIGNS, CHUNKS, PROGRESS = "campaigns", "campaign_chunks", "campaign_progress"
"""Names of the collections."""


class Campaigns(KeyedCollection):
    """Manifests by the name of the campaign."""

    key_field = "campaign"

    @classmethod
    def of(cls, job_store: JobStore) -> Campaigns:
        """Return the manifests that belong to a JobStore."""
        return cls(sibling(job_store, CAMPAIGNS, cls.key_field))

    def require(self, name: str) -> dict[str, Any]:
        """Return the manifest of a campaign.

        Raises:
            InputError: If there is none of that name.
        """
        found = self.get(name)
        if found is None:
            known = [row["campaign"] for row in self.query({}, ["campaign"])]
            hint = suggestion(name, known) if known else "None has been submitted to this store."
            raise InputError(f"There is no campaign {name!r} in this store.", hint)
        return found

    def is_canceled(self, name: str) -> bool:
        """Return whether a campaign was canceled."""
        return any(row.get("canceled_at") for row in self.fetch([name], ["campaign", "canceled_at"]))

    def save(self, manifest: dict[str, Any]) -> None:
        """Write a manifest."""
        self.put([manifest])


class Chunks(KeyedCollection):
    """Chunks of all campaigns: ``index`` holds keys and names of the crystals, ``payload`` the crystals as JSON text.

    The text is opaque to the database: what a structure holds is never taken for an operator or a class.
    """

    key_field = "chunk"

    @classmethod
    def of(cls, job_store: JobStore) -> Chunks:
        """Return the chunks that belong to a JobStore."""
        return cls(sibling(job_store, CHUNKS, cls.key_field))

    def numbers(self, campaign: str) -> dict[int, list[dict[str, Any]]]:
        """Return the index of every chunk of a campaign by its number, in order."""
        rows = list(self.query({"campaign": campaign}, ["number", "index"]))
        return {row["number"]: row["index"] for row in sorted(rows, key=lambda row: row["number"])}

    def items(self, campaign: str, number: int) -> list[Item]:
        """Return the crystals of a chunk.

        Raises:
            InputError: If there is no such chunk.
        """
        row = self.get(chunk_name(campaign, number))
        if row is None:
            raise InputError(f"Campaign {campaign!r} has no chunk {number} in this store.", "Submit it again.")
        return unpack_items(row["payload"])

    def write(self, campaign: str, number: int, items: Sequence[Item]) -> None:
        """Write a chunk."""
        index = [
            {
                "index": item.index,
                "label": item.label,
                "material_id": item.material_id,
                "facts": item.facts,
                "keys": item.keys,
                "cost": item.cost,
            }
            for item in items
        ]
        self.put(
            [
                {
                    "chunk": chunk_name(campaign, number),
                    "campaign": campaign,
                    "number": number,
                    "index": index,
                    "payload": pack_items(items),
                }
            ]
        )

    def discard(self, campaign: str) -> None:
        """Remove the chunks of a campaign."""
        self.remove([row["chunk"] for row in self.query({"campaign": campaign}, ["chunk"])])

    def _ensure_indexes(self) -> None:
        super()._ensure_indexes()
        self.store.ensure_index("campaign")


class Progress(KeyedCollection):
    """How far the workers are: one document for each chunk that a worker has begun."""

    key_field = "chunk"

    @classmethod
    def of(cls, job_store: JobStore) -> Progress:
        """Return the progress that belongs to a JobStore."""
        return cls(sibling(job_store, PROGRESS, cls.key_field))

    def note(self, campaign: str, number: int, stages: Sequence[dict[str, Any]], owner: str, done: bool) -> None:
        """Write how far a chunk is."""
        self.put(
            [
                {
                    "chunk": chunk_name(campaign, number),
                    "campaign": campaign,
                    "number": number,
                    "owner": owner,
                    "stages": list(stages),
                    "done": done,
                    "updated_at": datetime.now(UTC).isoformat(),
                }
            ]
        )

    def of_campaign(self, campaign: str) -> list[dict[str, Any]]:
        """Return the progress of the chunks of a campaign."""
        return list(self.query({"campaign": campaign}))

    def _ensure_indexes(self) -> None:
        super()._ensure_indexes()
        self.store.ensure_index("campaign")


def chunk_name(campaign: str, number: int) -> str:
    """Return the name of a chunk.

    Example:
        >>> chunk_name("oxides", 3)
        'oxides/00003'
    """
    return f"{campaign}/{number:05d}"


def pack_items(items: Sequence[Item]) -> str:
    """Return crystals as one JSON text."""
    return json.dumps([item.to_dict() for item in items], separators=(",", ":"), allow_nan=False)


def unpack_items(payload: str) -> list[Item]:
    """Return the crystals of :func:`pack_items`; nothing but plain values is read."""
    return [Item.from_dict(entry) for entry in json.loads(payload)]
