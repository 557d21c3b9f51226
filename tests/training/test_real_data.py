"""The shared label files through dataset, setup and a few steps; skipped where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.checkpoint import save_checkpoint
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.foundation import describe
from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.training.config import TrainingConfig
from fieldflows.training.data import average_neighbors, make_batch, make_frames
from fieldflows.training.loop import train
from fieldflows.training.response import full_response
from fieldflows.training.setup import load_dataset, prepare
from fieldflows.units import EPSILON_VACUUM

pytestmark = pytest.mark.skipif("FIELDFLOWS_DATA" not in os.environ, reason="FIELDFLOWS_DATA names no label files")
ELECTRONIC = ("born_effective_charges", "polarizability")
WORKFLOWS = Path(__file__).parents[2] / "workflows"


def few(name: str, limit: int):
    config = DatasetConfig.from_yaml(WORKFLOWS / name)
    sources = [source.model_copy(update={"limit": limit}) for source in config.sources[:1]]
    return build_dataset(config.model_copy(update={"sources": sources}))


def small(name: str, **run) -> TrainingConfig:
    config = TrainingConfig.from_yaml(WORKFLOWS / name)
    architecture = config.model.architecture.model_copy(
        update={"channels": 4, "max_ell": 2, "correlation": 2, "radial_MLP": (8,), "cutoff": 3.0}
    )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"architecture": architecture}),
            "run": config.run.model_copy(update={"epochs": 1, "threads": 1, "ema_decay": None, **run}),
        }
    )


def test_the_campaigns_of_the_paper_can_be_prepared(tmp_path, monkeypatch):
    """Fine-tuning with heads and replay, from a foundation of all elements in place of the one to download."""
    from fieldflows.training import sources

    datasets = {name: few(name, 30) for name in ("dataset_dielectric.yaml", "dataset_ferroelectric.yaml")}
    monkeypatch.setattr(sources, "open_dataset", lambda section, labels=(): datasets[Path(section.config).name])
    network = build_network(
        NetworkConfig(
            atomic_numbers=list(range(1, 95)), atomic_energies=[0.0] * 94, r_max=3.0, max_ell=1, correlation=2,
            hidden_irreps="2x0e + 2x1o", MLP_irreps="2x0e", radial_MLP=[4], field_coupling=False,
        ),
        seed=0,
    )  # fmt: skip
    save_checkpoint(tmp_path / "f.safetensors", network, describe(network, "all elements", ["energy", "forces"]))
    config = TrainingConfig.from_yaml(WORKFLOWS / "train_multihead.yaml")
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"backbone": str(tmp_path / "f.safetensors")}),
            "run": config.run.model_copy(update={"device": "cpu"}),
        }
    )
    data = load_dataset(config, tmp_path)
    setup = prepare(config, {split: data.subset(split) for split in ("train", "valid", "test")})
    assert setup.network.config.heads == ["mp-dielectric", "mp-ferroelectric", "pt_head", "Default"]
    counts = {head: sum(f.head == head for f in setup.frames["train"]) for head in config.heads}
    assert counts["pt_head"] == counts["mp-dielectric"] + counts["mp-ferroelectric"] > 20
    assert set(setup.labels) == set(config.loss.labels)
    assert float(setup.loss.terms["polarization"].weight) > 0
    trained = {frame.name.split(" ")[0] for frame in setup.frames["train"]}
    assert not trained & {frame.name.split(" ")[0] for split in ("valid", "test") for frame in setup.frames[split]}


@pytest.mark.parametrize("name", ["batio3", "sio2", "ferroelectric"])
def test_the_specialists_of_the_paper_can_be_trained(name, tmp_path):
    data = few(f"dataset_{name}.yaml", 12)
    result = train(small(f"train_{name}.yaml", batch_structures=2), tmp_path, dataset=data, figures=False)
    assert result.status == "epochs"
    assert all(np.isfinite(v["mae"]) for v in result.metrics["train"].values())


def test_quartz_with_all_labels(tmp_path):
    data = few("dataset_sio2.yaml", 12)
    result = train(small("train_sio2_small.yaml", batch_structures=1), tmp_path, dataset=data, figures=False)
    assert result.status == "epochs"
    names = {"energy_per_atom", "forces", "stress", "polarization", "born_charge_diagonal", "refractive_index"}
    assert names <= set(result.metrics["train"])
    assert all(np.isfinite(v["mae"]) for v in result.metrics["train"].values())
    # energies per formula unit are hundreds of eV; without the baselines errors would be as large
    assert result.metrics["train"]["energy_per_atom"]["mae"] < 1000


def test_published_crystals_are_completed_from_few_directions():
    """Those at hand in the shared files, against three directions on the same symmetrized primitive cells."""
    frames = [frame for frame in few("dataset_dielectric.yaml", 40).frames if len(frame.atoms) <= 16]
    numbers = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    config = NetworkConfig(
        atomic_numbers=numbers, atomic_energies=[0.0] * len(numbers), r_max=4.0, max_ell=3, correlation=2,
        hidden_irreps="4x0e + 4x1o", MLP_irreps="4x0e", num_bessel=4, radial_MLP=[8], avg_num_neighbors=20.0,
    )  # fmt: skip
    engine = fastest(build_network(config, seed=3))
    made = make_frames(frames, ELECTRONIC, numbers, 4.0, torch.float64, symprec=1e-3)
    reduced = [frame for frame in made if frame.outcome.kind == "reduced"]
    assert {frame.cost.directions for frame in reduced} == {1, 2}
    assert len(reduced) > 0.7 * len(made)
    for frame in reduced:
        batch = make_batch([frame], ELECTRONIC)
        found = full_response(engine, batch)
        full = respond(engine, batch.graph, ELECTRONIC)
        charges = full["born_effective_charges"].index_select(0, batch.reduction.mapping)
        torch.testing.assert_close(found["born_effective_charges"], charges, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found["polarizability"], full["polarizability"], rtol=1e-9, atol=1e-13)


def test_dielectric_labels_make_a_sane_start():
    data = few("dataset_dielectric.yaml", 150)
    frames = {split: data.subset(split) for split in ("train", "valid", "test")}
    setup = prepare(small("train_dielectric.yaml"), frames)
    assert setup.labels == ("born_effective_charges", "polarizability")
    assert setup.network.config.avg_num_neighbors == pytest.approx(average_neighbors(frames["train"], 3.0))
    assert setup.network.config.composition_polarizability == len(frames["train"])
    assert not setup.network.config.element_polarizability
    left_out = setup.provenance["composition_polarizability"]["leave_formula_out_mae"]
    chi = np.array([np.trace(f.labels["polarizability"]) / 3 for f in frames["train"]]) / EPSILON_VACUUM
    assert left_out["epsilon"] < 0.8 * np.abs(chi - np.median(chi)).mean()
    # nothing isotropic is left to the network: the targets have the trace of the process
    frame = setup.frames["train"][0]
    assert np.trace(frame.targets["polarizability"]) != pytest.approx(np.trace(frame.labels["polarizability"]))


def test_polarizabilities_of_elements_make_a_sane_start():
    data = few("dataset_dielectric.yaml", 150)
    frames = {split: data.subset(split) for split in ("train", "valid", "test")}
    config = small("train_dielectric.yaml")
    switches = {"element_polarizability": True, "composition_polarizability": False}
    switches["isotropic_polarizability"] = "network"
    setup = prepare(config.model_copy(update={"model": config.model.model_copy(update=switches)}), frames)
    found = dict(zip(setup.network.config.atomic_numbers, setup.network.element_polarizability.tolist(), strict=True))
    assert min(found.values()) >= 0
    # free-ion polarizabilities divided by 4πε_vac·Å³ = 0.0694: F⁻ about 1 Å³, Te²⁻ about 10 Å³
    assert found[9] < 0.5 * found[34]
    assert not setup.network.element_polarizability.requires_grad
