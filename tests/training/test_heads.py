"""Several heads on common features."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.checkpoint import load_checkpoint
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.heads import with_heads
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.data import make_batch
from fieldflows.training.loop import train
from fieldflows.training.response import full_response
from fieldflows.training.setup import prepare
from fieldflows.training.sources import check_leakage
from tests.training.crystals import SmallDataset, rattled
from tests.training.multi import NUMBERS, RESPONSE, SURFACE, frames_of, heads_config, plain_network, subsets, two_heads


def energies(network, head, atoms):
    graph = build_graph(atoms, NUMBERS, 3.5, network.dtype, network.config.heads.index(head))
    found = respond(network, graph, ("energy", "forces"))
    return float(found["energy"][0]), found["forces"].numpy()


@pytest.mark.parametrize("readout", ["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"])
def test_new_heads_start_as_the_ones_they_are_told_to(readout):
    old = plain_network(heads=("a", "b", "c"), readout_cls=readout)
    new = with_heads(old, {"x": "c", "b": None, "y": None})
    assert new.config.heads == ["x", "b", "y", "a", "c"]
    atoms = rattled(1, 3)
    for head, origin in {"x": "c", "b": "b", "y": "a", "a": "a", "c": "c"}.items():
        ours, theirs = energies(new, head, atoms), energies(old, origin, atoms)
        assert ours[0] == pytest.approx(theirs[0], abs=1e-11)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-11)
        fast = respond(fastest(new), build_graph(atoms, NUMBERS, 3.5, head=new.config.heads.index(head)), ("energy",))
        assert float(fast["energy"][0]) == pytest.approx(theirs[0], abs=1e-10)
    assert energies(old, "a", atoms)[0] != pytest.approx(energies(old, "c", atoms)[0], abs=1e-3)


def test_a_head_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(SettingsError, match=r"omat_pbe.*has the heads omat-pbe, mp.*[Dd]id you mean"):
        with_heads(plain_network(heads=("omat-pbe", "mp")), {"new": "omat_pbe"})


@pytest.fixture(scope="module")
def setup():
    return prepare(heads_config(), subsets(two_heads()))


def test_each_frame_gets_the_energy_of_its_own_head(setup):
    frames = setup.frames["train"]
    assert {frame.head for frame in frames} == {"dielectric", "surface"}
    batch = make_batch(frames, ("energy",))
    together = setup.network(batch.graph)[0]
    for g, frame in enumerate(frames):
        number = setup.network.config.heads.index(frame.head)
        alone = build_graph(frame.atoms, setup.network.config.atomic_numbers, 3.5, head=number)
        assert float(together[g].detach()) == pytest.approx(float(setup.network(alone)[0].detach()), abs=1e-11)
        other = build_graph(frame.atoms, setup.network.config.atomic_numbers, 3.5, head=1 - number)
        assert abs(float(together[g].detach()) - float(setup.network(other)[0].detach())) > 1e-6


@pytest.mark.parametrize("fast", [False, True])
def test_the_loss_of_one_head_does_not_touch_the_readouts_of_the_other(setup, fast):
    evaluator = fastest(setup.network) if fast else setup.network
    number = setup.network.config.heads.index("dielectric")
    batch = make_batch([f for f in setup.frames["train"] if f.head == "dielectric"], setup.labels)
    loss, _ = setup.loss(full_response(evaluator, batch, create_graph=True), batch)
    names = [name for name in setup.parameters if name.startswith("readouts.")]
    found = torch.autograd.grad(loss, [setup.parameters[name] for name in names], allow_unused=True)
    for name, gradient in zip(names, found, strict=True):
        heads = (
            gradient.view(-1, 2) if "linear_1" not in name else gradient.view(4, 2, 4).permute(0, 2, 1).reshape(-1, 2)
        )
        own, other = heads[:, number], heads[:, 1 - number]
        assert float(other.abs().max()) == 0.0
        assert float(own.abs().max()) > 1e-8


def test_weights_and_labels_by_head(setup):
    for frame in setup.frames["train"]:
        assert frame.weight == (1.0 if frame.head == "dielectric" else 2.0)
        assert set(frame.labels) == (set(RESPONSE) if frame.head == "dielectric" else {"energy", "forces"})
    assert setup.loss.normalizations(setup.frames["train"])["energy"] == 8.0
    notes = "\n".join(setup.notes())
    assert "head dielectric: train 4, valid 2, test 0 frames with born_effective_charges, polarizability" in notes
    assert re.search(r"loss of forces: weight 1, scale [0-9.]+ eV/Å \(spread\), 4 frames, trivial prediction", notes)


def test_atomic_energies_by_head(setup):
    """Without energies the baselines are zero; with them least squares reproduces the shared compounds."""
    baselines = setup.baselines("surface")
    assert set(setup.baselines("dielectric").values()) == {0.0}
    frames = [frame for frame in two_heads().frames if frame.head == "surface" and frame.split == "train"]
    matrix = np.array([[np.count_nonzero(f.atoms.numbers == z) for z in baselines] for f in frames], float)
    values = np.array([float(f.labels["energy"]) for f in frames])
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    np.testing.assert_allclose(list(baselines.values()), expected, atol=1e-9)


def test_a_run_with_heads_leaves_a_model_of_both(tmp_path):
    result = train(heads_config(), tmp_path / "run", dataset=two_heads(), figures=False)
    network, metadata, _ = load_checkpoint(result.checkpoint)
    assert metadata.network.heads == ["dielectric", "surface"]
    atoms = rattled(0, 1)
    default, surface = MACEFieldModel(network, metadata), MACEFieldModel(network, metadata, head="surface")
    values = [model.evaluate(atoms, observables=("energy",)).energy for model in (default, surface)]
    assert abs(values[0] - values[1]) > 0.5
    reference = next(f for f in two_heads().frames if f.head == "surface")
    predicted = surface.evaluate(reference.atoms, observables=("energy",)).energy
    assert predicted == pytest.approx(float(reference.labels["energy"]), abs=1.0)


def test_a_head_without_data_is_named():
    only = SmallDataset([frame for frame in two_heads().frames if frame.head == "surface"])
    with pytest.raises(TrainingError, match="'dielectric' has no training frames"):
        prepare(heads_config(), subsets(only))


def test_labels_that_a_head_lacks_are_named():
    frames = [f.with_(labels={"polarizability": f.labels["polarizability"]}) if f.head == "dielectric" else f
              for f in two_heads().frames]  # fmt: skip
    with pytest.raises(TrainingError, match=r"'dielectric' asks for born_effective_charges.*they hold polarizability"):
        prepare(heads_config(), subsets(SmallDataset(frames)))
    none = [f.with_(labels={"stress": np.zeros((3, 3))}) if f.head == "surface" else f for f in two_heads().frames]
    with pytest.raises(TrainingError, match=r"head 'surface' has a label to train on \(energy, forces"):
        prepare(heads_config(), subsets(SmallDataset(none)))


def test_formulas_must_not_train_one_head_and_judge_another():
    first = frames_of(RESPONSE, (0, 1), splits=("train",), head="dielectric")
    second = frames_of(SURFACE, (1, 2), splits=("valid", "train"), head="surface")
    agreeing = frames_of(SURFACE, (1, 2), splits=("train",), head="surface")
    check_leakage({"dielectric": first, "surface": agreeing})
    with pytest.raises(SettingsError, match=r"MgO.*trains 'dielectric' and judges 'surface'"):
        check_leakage({"dielectric": first, "surface": second})
    with pytest.raises(SettingsError, match="MgO"):
        prepare(heads_config(), subsets(SmallDataset(first + second)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"a": {}}}, "exactly one of 'dataset' and 'replay'"),
        ({"heads": {"a": {"dataset": {"path": "x"}, "labels": {"bec": 1}}}}, "no loss for 'bec'"),
        ({"heads": {"a": {"dataset": {"path": "x"}, "labels": {"stress": 1}}}}, "loss.terms has no weight"),
        ({"heads": {"a": {"dataset": {"path": "x"}, "start_from": "b"}}}, "needs model.backbone"),
        ({"heads": {"a": {"replay": {"from_heads": True}}}}, "replay needs model.backbone"),
        ({"heads": {"a": {"replay": {"labels": "file"}}}}, "exactly one of 'path'"),
        ({"heads": {"a": {"dataset": {"path": "x"}, "wieght": 2}}}, "wieght.*weight"),
        ({"dataset": {"path": "x"}}, "either 'dataset' or 'heads'"),
    ],
)
def test_wrong_heads_are_explained(changes, message):
    with pytest.raises(SettingsError, match=message):
        heads_config(**changes)
