"""MPContribs as a replay: contributions and attachments, recorded or made with the closed-form toy model as DFT."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.io.ase import AseAtomsAdaptor
from scipy import constants
from scipy.spatial.transform import Rotation

from fieldflows import load_model
from tests.support.replay import Handler, Params, ReplayServer, Reply

# Written out here, so that the package's own factors are held against something.
UC_PER_CM2 = constants.e / constants.angstrom**2 * 100.0  # per e/Å²
KBAR = -constants.e / constants.angstrom**3 * 1e-8  # VASP's kbar per eV/Å³ of tensile stress

KEY = "k" * 32
NONPOLAR = np.diag([4.0, 4.0, 4.0])
POLAR = np.array([[3.96, 0.02, 0.0], [0.0, 4.02, 0.03], [0.05, 0.0, 4.2]])


def crystal(k: int, symbols: str = "BaTiO3", size: float = 1.0) -> Atoms:
    """Frame k of a path from a cubic to a polar perovskite; its cells are rotated against each other."""
    t = k / 9
    scaled = np.array([[0, 0, 0], [0.5, 0.5, 0.5 + 0.03 * t], [0.5, 0.5, -0.04 * t], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    cell = (
        size
        * ((1 - t) * NONPOLAR + t * POLAR)
        @ Rotation.from_euler("xyz", [0, 4 * t, 3 * t], degrees=True).as_matrix()
    )
    return Atoms(symbols, cell=cell, scaled_positions=scaled % 1.0, pbc=True)


@lru_cache(maxsize=32)
def answers_of_dft(symbols: str = "BaTiO3", size: float = 1.0) -> list[Any]:
    """Return energy, forces, stress and polarization of every frame of a path, by the toy model."""
    wanted = ("energy", "forces", "stress", "polarization")
    return [load_model("toy").evaluate(crystal(k, symbols, size), observables=wanted) for k in range(10)]


def workflow(
    wfid: str = "wfid_1", symbols: str = "BaTiO3", size: float = 1.0, start=(0.0, 0.0, 0.0), **changes: Any
) -> dict:
    """Return the content of an attachment; ``start`` is added to the fractions p/quantum of all frames."""
    frames = [crystal(k, symbols, size) for k in range(10)]
    responses = answers_of_dft(symbols, size)
    fractions = np.array([
        r.polarization * a.get_volume() @ np.linalg.inv(a.cell[:]) for a, r in zip(frames, responses, strict=True)
    ])  # fmt: skip
    end = frames[-1]
    quanta = end.cell.lengths() / end.get_volume() * UC_PER_CM2
    change = (fractions[-1] - fractions[0]) @ end.cell[:] / end.get_volume() * UC_PER_CM2
    made = {
        "wfid": wfid,
        "workflow_status": "COMPLETED",
        "nonpolar_id": "mp-1",
        "polar_id": "mp-2",
        "structures": [AseAtomsAdaptor.get_structure(atoms).as_dict() for atoms in frames],
        "energies": [float(r.energy) for r in responses],
        "energies_per_atom": [float(r.energy) / len(end) for r in responses],
        "bandgaps": [1.5 + 0.1 * k for k in range(10)],
        "forces": [np.asarray(r.forces).tolist() for r in responses],
        "stresses": [(np.asarray(r.stress) * KBAR).tolist() for r in responses],
        "same_branch_polarization": ((fractions + start) * quanta).tolist(),
        "polarization_quanta": [quanta.tolist()] * 10,
        "polarization_change_norm": float(np.linalg.norm(change)),
    }
    return made | changes


def object_id(number: int) -> str:
    return f"{number:024x}"


def contribution(number: int, content: Mapping[str, Any], **changes: Any) -> dict:
    """Return the contribution that an attachment of this content belongs to."""
    made = {
        "id": object_id(number),
        "project": "ferroelectrics",
        "identifier": content["wfid"],
        "formula": "BaTiO3",
        "data": {"workflow": {"status": content["workflow_status"], "category": "smooth"}},
        "structures": [],
        "attachments": [
            {"id": object_id(1000 + number), "name": "distortion.json.gz", "md5": "0" * 32, "mime": "application/gzip"},
            {"id": object_id(2000 + number), "name": "workflow.json.gz", "md5": "1" * 32, "mime": "application/gzip"},
        ],
    }
    return made | changes


def pack(content: Any) -> str:
    """Return base64(gzip(JSON))."""
    return base64.b64encode(gzip.compress(json.dumps(content).encode())).decode()


def answers(*contents: Mapping[str, Any], packed: bool = True) -> dict:
    """Return saved answers with one contribution per content."""
    documents = [contribution(k, content) for k, content in enumerate(contents)]
    attachments = {}
    for document, content in zip(documents, contents, strict=True):
        entry = document["attachments"][1]
        attachments[entry["id"]] = entry | ({"content": pack(content)} if packed else {"json": content})
    return {
        "projects": {"data": [{"name": "ferroelectrics", "columns": []}]},
        "contributions": {"data": documents, "total_count": len(documents), "total_pages": 1},
        "attachments": attachments,
    }


def attachment_path(number: int) -> str:
    return f"/attachments/{object_id(2000 + number)}/"


def _fields(document: Mapping[str, Any], params: Params) -> dict:
    return {name: document[name] for name in params["_fields"].split(",") if name in document}


def routes(saved: Mapping[str, Any], most_per_page: int = 100) -> dict[str, Handler]:
    """Return the routes of the service: pages, ids, the filter by formula; only the fields that were asked for."""
    documents = saved["contributions"]["data"]

    def projects(params: Params) -> Any:
        return {"data": [item for item in saved["projects"]["data"] if params.get("name") in (None, item["name"])]}

    def contributions(params: Params) -> Any:
        found = [item for item in documents if item["project"] == params["project"]]
        for key, field in (("id__in", "id"), ("identifier__in", "identifier"), ("formula", "formula")):
            if key in params:
                found = [item for item in found if item[field] in params[key].split(",")]
        size = min(int(params.get("per_page", 10)), most_per_page)
        start = size * (int(params.get("page", 1)) - 1)
        page = [_fields(item, params) for item in found[start : start + size]]
        return {"data": page, "total_count": len(found), "total_pages": -(-len(found) // size)}

    def attachment(entry: Mapping[str, Any]) -> Handler:
        def answer(params: Params) -> Any:
            wanted = params.get("_fields", "")
            if "content" in wanted and "md5" not in wanted:  # as the service: content is found by its md5
                return Reply(500, b"Please also request md5 field to retrieve attachment content!")
            return _fields(entry, params)

        return answer

    made: dict[str, Handler] = {"/projects/": projects, "/contributions/": contributions}
    for identifier, entry in saved["attachments"].items():
        made[f"/attachments/{identifier}/"] = attachment(entry)
    return made


def server(saved: Mapping[str, Any], **options: Any) -> ReplayServer:
    return ReplayServer(routes(saved, **options), key=KEY)
