"""Every campaign file in workflows/ is read and planned, with small stand-ins for inputs that are not at hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from fieldflows.campaigns import Campaign, CampaignConfig
from fieldflows.campaigns.dispatch import make_engine
from fieldflows.jobs.artifacts import open_dataset
from fieldflows.models.find import locate
from fieldflows.structures import as_structure
from tests.datasets.synthetic import dielectric_text, perovskite
from tests.datasets.synthetic import write as write_text
from tests.support.materials_project import KEY, serve

FOLDER = Path(__file__).parents[2] / "workflows"
FILES = sorted(path.name for path in FOLDER.glob("screen*.yaml"))
CRYSTALS = 6


def silica(number: int) -> Atoms:
    """A crystal of silicon and oxygen (ideal β-cristobalite), each of another size."""
    atoms = bulk("Si", "diamond", 7.16 + 0.01 * number)
    middle = [sum(atoms.get_positions()) / 2 - 0.5 * shift for shift in (0 * atoms.cell[0], *atoms.cell)]
    return atoms + Atoms("O4", positions=middle, cell=atoms.cell, pbc=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of workflows/ with what its files name: models, ids, crystals, data, and a service."""
    made = tmp_path / "workflows"
    shutil.copytree(FOLDER, made, ignore=shutil.ignore_patterns("*.py", "fireworks", "remote"))
    shutil.copy(locate("SiO2"), made / "forces.safetensors")
    (made / "crystals/more").mkdir(parents=True)
    summaries = []
    ids = CampaignConfig.from_yaml(FOLDER / "screen.yaml").inputs[0].mp_ids
    for number, name in enumerate(ids[:CRYSTALS]):
        atoms = silica(number)
        write(made / "crystals" / ("more" if number % 2 else ".") / f"{number}.cif", atoms)
        structure = as_structure(atoms)
        summaries.append(
            {"material_id": name, "formula_pretty": "SiO2", "volume": structure.volume, "deprecated": False,
             "structure": structure.as_dict(), "band_gap": 5.7, "energy_above_hull": 0.01}
        )  # fmt: skip
    (made / "ids.txt").write_text("\n".join(ids) + "\n")
    for length, name in ((3.9, "dielectric_valid_dev.extxyz.xz"), (4.0, "dielectric_test_dev.extxyz.xz")):
        names = product(("Mg", "Ca", "Sr", "Ba", "Pb"), ("Ti", "Zr", "Hf", "Sn"), ("O", "S", "Se"))
        write_text(tmp_path / name, "".join(dielectric_text(perovskite(*three, length)) for three in names))
    monkeypatch.setenv("FIELDFLOWS_DATA", str(tmp_path))
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "store.db"))
    monkeypatch.setenv("MP_API_KEY", KEY)
    with serve({"summary": summaries, "dielectric": []}) as server:
        monkeypatch.setenv("MP_API_ENDPOINT", server.url)
        yield made


def test_there_are_such_files() -> None:
    wanted = {"", "_mp_query", "_files", "_dataset", "_fireworks", "_remote"}
    assert {f"screen{name}.yaml" for name in wanted} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_planned(folder: Path, name: str) -> None:
    campaign = Campaign.from_yaml(folder / name)
    assert campaign.config.name == name.removesuffix(".yaml")
    plan = campaign.plan()
    assert plan.failures == []
    given = campaign.config.inputs[0].dataset
    assert len(plan.items) == (CRYSTALS if given is None else len(open_dataset(given).subset("test"))) > 0
    assert {spec.name for spec in plan.stage_plans} <= {"relax", "optical", "lattice"}
    assert all(stage.seconds > 0 for stage in plan.stage_plans)
    devices = {stage.spec.name: stage.spec.model.device for stage in plan.stages}  # planned where there may be none
    on_gpus = {"relax": "cuda", "optical": "cpu", "lattice": "cuda"}
    assert devices == (on_gpus if "fireworks" in name or "remote" in name else dict.fromkeys(devices, "cpu"))
    assert not (folder.parent / "store.db").exists()


@pytest.mark.parametrize("name", FILES)
def test_the_command_in_a_file_is_about_that_file(name: str) -> None:
    head = [line for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"fieldflows campaign submit workflows/{name}" in line for line in head)
    named = [word for line in head for word in line.split() if word.startswith("screen")]
    assert set(named) <= {name.removesuffix(".yaml"), *(f"{name.removesuffix('.yaml')}.csv",)}


def test_the_funnel_is_what_it_says() -> None:
    relax, optical, lattice = CampaignConfig.from_yaml(FOLDER / "screen.yaml").stages
    assert (relax.task, optical.settings, lattice.settings) == ("relax", {"ionic": False}, {"ionic": True})
    assert lattice.where == "n < 3 and band_gap > 0.5"


@pytest.mark.parametrize(("name", "kind"), [("fireworks", "FireworksEngine"), ("remote", "RemoteEngine")])
def test_the_engines_are_those_of_the_templates(name: str, kind: str) -> None:
    config = CampaignConfig.from_yaml(FOLDER / f"screen_{name}.yaml")
    engine = make_engine(config.engine)
    assert type(engine).__name__ == kind
    assert set(engine.workers) == {"cpu", "gpu"}
    folder = FOLDER / name
    text = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix == ".yaml")
    for worker in engine.workers.values():
        assert (f"category: {worker}" if name == "fireworks" else f"{worker}:") in text
