"""The part of the Materials Project's service that the package asks, on loopback, with documents of a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emmet.core.mpid import AlphaID

from tests.support.replay import Params, ReplayServer

KEY = "k3yOfTheTest" + "0123456789" * 2
"""A key of the right length."""

HEARTBEAT = {
    "status": "OK",
    "db_version": "2026.04.13",
    "version": "0.87.3",
    "access_controlled_batch_ids": ["gnome_r2scan_statics"],
}
IDENTIFIERS = {"dielectric": "material_id", "summary": "material_id", "tasks": "task_id", "phonon": "identifier"}


def number(identifier: object) -> int:
    return int(AlphaID(str(identifier)))


def _project(document: Mapping[str, Any], fields: list[str]) -> dict[str, Any]:
    """Return the named fields, nested ones with dots, as a Mongo projection does."""
    result: dict[str, Any] = {}
    for field in fields:
        source, target = document, result
        *parents, last = field.split(".")
        for parent in parents:
            source = source.get(parent) or {}
            target = target.setdefault(parent, {})
        if isinstance(source, Mapping) and last in source:
            target[last] = source[last]
    return result


def collection(documents: Iterable[Mapping[str, Any]], key: str):
    """Return a handler with the service's parameters: ids, chemsys, range of n, _fields, _limit, _skip."""
    kept = list(documents)

    def handler(params: Params) -> dict[str, Any]:
        found = kept
        ids = params.get(key + "s")
        if ids is not None:
            wanted = {number(text) for text in ids.split(",")}
            found = [item for item in found if number(item[key]) in wanted]
        if "chemsys" in params:
            found = [item for item in found if item.get("chemsys") in params["chemsys"].split(",")]
        if "n_min" in params:
            low, high = float(params["n_min"]), float(params["n_max"])
            found = [item for item in found if low <= item["n"] <= high]
        if key == "material_id" and "structure" in params.get("_fields", ""):  # summaries: deprecated ones on request
            wanted_state = params.get("deprecated") == "True"
            found = [item for item in found if bool(item.get("deprecated")) == wanted_state]
        skip, limit = int(params.get("_skip", 0)), int(params.get("_limit", 100))
        page = found[skip : skip + limit]
        if "_fields" in params:
            page = [_project(item, params["_fields"].split(",")) for item in page]
        return {"data": page, "errors": None, "meta": {"total_doc": len(found), "api_version": "0.87.3"}}

    return handler


def serve(documents: Mapping[str, Iterable[Mapping[str, Any]]], key: str | None = KEY) -> ReplayServer:
    """Return a server of some routes: {"dielectric": [...], "summary": [...], ...}."""
    routes = {f"/materials/{name}/": collection(items, IDENTIFIERS[name]) for name, items in documents.items()}
    return ReplayServer({"/heartbeat": lambda _: HEARTBEAT} | routes, key=key, open_paths=["/heartbeat"])
