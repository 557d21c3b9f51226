"""A thousand inputs, fifty of them broken in ten ways: 950 are done and 50 are explained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from jobflow import JobStore

from fieldflows.campaigns.campaign import Campaign
from fieldflows.campaigns.export import rows
from fieldflows.campaigns.records import Campaigns
from tests.campaigns.made import crystals, failures_of, results_of

GOOD_CIF = "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"


def close_atoms(path: Path) -> None:
    atoms = bulk("MgO", "rocksalt", 4.21)
    atoms.positions[1] = atoms.positions[0] + 0.1
    write(path, atoms, format="extxyz")


def flat_cell(path: Path) -> None:
    write(path, Atoms("MgO", [[0, 0, 0], [1, 1, 0]], cell=[[4, 0, 0], [8, 0, 0], [0, 0, 4]], pbc=True), format="extxyz")


def molecule(path: Path) -> None:
    write(path, Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9, 9, 9], pbc=False), format="extxyz")


def no_numbers(path: Path) -> None:
    text = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"\nMg 0 0 0\nO nan 2 2\n'
    path.write_text(text)


def unknown_element(path: Path) -> None:
    write(path, Atoms("OgO", [[0, 0, 0], [2.2, 2.2, 2.2]], cell=[4.4] * 3, pbc=True), format="extxyz")


def in_bohr(path: Path) -> None:
    write(path, bulk("MgO", "rocksalt", 4.21 * 3.5), format="extxyz")


def cut_off(path: Path) -> None:
    write(path, bulk("MgO", "rocksalt", 4.21), format="extxyz")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def partly_occupied(path: Path) -> None:
    names = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"]
    sites = ["Mg1 Mg 0 0 0 0.5", "O1 O 0.5 0.5 0.5 1"]
    head = "_cell_angle_gamma 90\n_space_group_name_H-M_alt 'P 1'\nloop_"
    lines = [GOOD_CIF + head, *(f"_atom_site_{name}" for name in names), *sites]
    path.with_suffix(".cif").write_text("\n".join(lines) + "\n")


def empty(path: Path) -> None:
    path.with_suffix(".cif").write_text("")


def no_json(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sites": [')


WAYS = (
    close_atoms, flat_cell, molecule, no_numbers, unknown_element, in_bohr, cut_off, partly_occupied, empty, no_json,
)  # fmt: skip


@pytest.mark.parametrize(("good", "each"), [(38, 2), pytest.param(950, 5, marks=pytest.mark.slow)])
def test_the_good_are_done_and_the_bad_are_explained(good: int, each: int, tmp_path: Path, store: JobStore) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    for number, atoms in enumerate(crystals(good)):
        write(folder / f"good{number:04d}.extxyz", atoms, format="extxyz")
    for way in WAYS:
        for number in range(each):
            way(folder / f"{way.__name__}{number}.extxyz")
    stages = "stages: [{name: optical, settings: {ionic: false}}]"
    (tmp_path / "c.yaml").write_text(f"name: mixed\ninputs: [{{files: inputs/*}}]\nmodel: {{name: toy}}\n{stages}\n")
    found = Campaign.from_yaml(tmp_path / "c.yaml").run(store)
    assert found.complete
    assert (found.crystals, found.unreadable, found.stages[0].done) == (good, len(WAYS) * each, good)
    assert len(results_of(store)) == good
    explained = Counter(Path(row["source"]).stem.rstrip("0123456789") for row in failures_of(store).values())
    assert explained == {way.__name__: each for way in WAYS}
    for row in failures_of(store).values():
        assert len(row["message"]) > 15
        assert "Traceback" not in row["message"]
    table = list(rows(store, Campaigns.of(store).require("mixed")))
    assert len(table) == good + len(WAYS) * each
    assert sum(row.get("stage_optical") == "done" for row in table) == good
    assert sum(bool(row.get("error")) for row in table) == len(WAYS) * each
