"""Field blocks on a foundation, freezing, learning rates by part, and replay."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.checkpoint import load_checkpoint
from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.backends.mace_field.foundation import load_backbone
from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.datasets.extxyz import raw_from_atoms, write_extxyz
from fieldflows.errors import LabelError, SettingsError, TrainingError, UnknownElementError
from fieldflows.training.config import TrainingConfig
from fieldflows.training.data import make_batch
from fieldflows.training.groups import freeze, matching, parameter_groups
from fieldflows.training.loop import train
from fieldflows.training.replay import farthest_points, foundation_labels
from fieldflows.training.response import full_response
from fieldflows.training.setup import load_dataset, prepare
from fieldflows.training.sources import load_heads
from tests.training.crystals import COMPOUNDS, SmallDataset, label, rattled
from tests.training.multi import NUMBERS, RESPONSE, SURFACE, frames_of, heads_config, plain_network, save, subsets

FIELD_LABELS = ("polarization", "born_effective_charges", "polarizability")


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    return save(plain_network(heads=("mp", "other")), tmp_path_factory.mktemp("foundation") / "tiny.safetensors")


def zero_config(foundation, labels=FIELD_LABELS, **changes) -> TrainingConfig:
    data = {
        "dataset": {"path": "unused"},
        "model": {"backbone": str(foundation), "field_blocks": "zero", "element_polarizability": False},
        "loss": {"terms": {key: {"kind": "mse", "scale": "spread"} for key in labels}},
        "optimizer": {"learning_rate": 0.01, "warm_up_steps": 0, "schedule": "constant"},
        "run": {"epochs": 3, "batch_structures": 4, "dtype": "float64", "threads": 1, "ema_decay": None},
    }
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values}
    return TrainingConfig.from_dict(data)


@pytest.fixture(scope="module")
def crystals():
    return SmallDataset(frames_of(FIELD_LABELS, (0, 1), ("train", "train")) + frames_of(FIELD_LABELS, (2,), ("valid",)))


def gradients(setup, key):
    """Return the largest gradient of the loss of one label by the parameters of the field blocks."""
    batch = make_batch(setup.frames["train"], (key,))
    loss, _ = setup.loss(full_response(setup.network, batch, create_graph=True), batch)
    names = [name for name in setup.parameters if name.startswith("field_")]
    found = torch.autograd.grad(loss, [setup.parameters[name] for name in names], allow_unused=True)
    return {name: 0.0 if g is None else float(g.abs().max()) for name, g in zip(names, found, strict=True)}


def test_zero_field_blocks_are_exactly_the_foundation_and_learn(foundation, crystals):
    """α is of second order in the blocks: it follows as soon as P or Z* have moved them."""
    setup = prepare(zero_config(foundation), subsets(crystals))
    reference, _, _ = load_checkpoint(foundation)
    atoms = rattled(0, 3)
    for number in range(2):
        graph = build_graph(atoms, NUMBERS, 3.5, head=number)
        field = torch.tensor([[0.03, -0.02, 0.05]], dtype=torch.float64)
        ours = respond(setup.network, graph, ("energy", "forces"), field)
        theirs = respond(reference, graph, ("energy", "forces"))
        baseline = theirs["energy"] - sum(reference(graph)[:1])
        torch.testing.assert_close(ours["energy"] + baseline, theirs["energy"], atol=1e-12, rtol=0)
        torch.testing.assert_close(ours["forces"], theirs["forces"], atol=1e-12, rtol=0)
    first = {key: gradients(setup, key) for key in FIELD_LABELS}
    assert first["polarization"]["field_linear.0.weight"] > 1e-8
    assert first["born_effective_charges"]["field_linear.0.weight"] > 1e-8
    assert max(first["polarizability"].values()) == 0.0
    optimizer = torch.optim.Adam(setup.parameters.values(), lr=0.01)
    batch = make_batch(setup.frames["train"], FIELD_LABELS)
    losses = []
    for _ in range(3):
        loss, _ = setup.loss(full_response(setup.network, batch, create_graph=True), batch)
        optimizer.zero_grad()
        loss.backward(inputs=list(setup.parameters.values()))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for key in FIELD_LABELS:
        assert min(gradients(setup, key).values()) > 1e-10, key


def test_zero_blocks_that_could_never_leave_zero_are_refused(foundation):
    with pytest.raises(SettingsError, match="second order in the blocks"):
        zero_config(foundation, ("polarizability",))
    with pytest.raises(SettingsError, match=r"zero needs model\.backbone"):
        TrainingConfig.from_dict({"dataset": {"path": "x"}, "model": {"field_blocks": "zero"}})


def test_a_foundation_keeps_its_heads_and_elements(foundation, crystals):
    setup = prepare(zero_config(foundation), subsets(crystals))
    assert setup.network.config.heads == ["mp", "other"]
    assert setup.network.config.atomic_numbers == NUMBERS
    assert setup.atomic_energies.shape == (2, 6)
    assert setup.atomic_energies[1, 0] == -4.0


def test_elements_that_the_foundation_does_not_know_are_named_with_their_frames(foundation, crystals):
    atoms = crystals.frames[0].atoms.copy()
    atoms.numbers[0] = 56
    strange = crystals.frames[0].with_(atoms=atoms, material="BaCl", source_index=77)
    with pytest.raises(UnknownElementError, match=r"does not know Ba, which 1 of 6 frames hold: BaCl \(teacher:77\)"):
        prepare(zero_config(foundation), subsets(SmallDataset([*crystals.frames, strange])))


def test_a_backbone_that_was_replaced_by_another_architecture_is_noticed(crystals, tmp_path):
    path = save(plain_network(), tmp_path / "f.safetensors")
    config = zero_config(path, run={"epochs": 1}, optimizer={"schedule": "constant"})
    train(config, tmp_path / "run", dataset=crystals, figures=False)
    save(plain_network(radial_MLP=[6]), path)
    with pytest.raises(
        TrainingError, match=r"another architecture: .* differ, such as interactions\.0.*model\.backbone"
    ):
        train(config, tmp_path / "run", dataset=crystals, figures=False)


# ---- freezing and learning rates by part -----------------------------------------------------------------------------


def test_names_of_parts_cover_every_parameter_once():
    names = [name for name, _ in plain_network(field_coupling=True, element_polarizability=True).named_parameters()]
    parts = [matching(part, names) for part in ("embedding", "interactions", "products", "readouts", "field")]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert sorted(matching("backbone", names) + matching("field", names)) == sorted(names)
    assert sorted(matching("interactions.0", names) + matching("interactions.1", names)) == sorted(parts[1])
    assert matching("field.0", names) == ["field_feats.0.weight", "field_linear.0.weight"]
    assert matching("readouts.*.linear_2.weight", names) == ["readouts.1.linear_2.weight"]


def test_frozen_parts_stay_bit_by_bit_and_the_others_move(foundation, crystals, tmp_path):
    frozen_parts = ["embedding", "interactions.0", "products", "readouts.0.*"]
    config = zero_config(foundation, model={"freeze": frozen_parts}, run={"epochs": 2})
    start = prepare(config, subsets(crystals)).network.state_dict()
    result = train(config, tmp_path / "run", dataset=crystals, figures=False)
    network, metadata, _ = load_checkpoint(result.checkpoint)
    frozen = {n for n, _ in network.named_parameters()
              if n.startswith(("node_embedding", "interactions.0.", "products.", "readouts.0."))}  # fmt: skip
    assert set(metadata.provenance["frozen"]) == frozen
    for name, value in network.named_parameters():
        assert torch.equal(value, start[name]) == (name in frozen), name


def test_freezing_what_does_not_exist_or_everything_is_refused():
    network = plain_network()
    with pytest.raises(SettingsError, match=r"no parameter is called 'readout'.*readouts"):
        freeze(network, ["readout"])
    with pytest.raises(SettingsError, match="nothing to train"):
        freeze(network, ["backbone"])


def test_the_last_pattern_that_matches_sets_the_learning_rate(foundation):
    network = plain_network(field_coupling=True)
    config = zero_config(foundation, optimizer={"groups": {"backbone": 0.1, "readouts": 0.5, "readouts.1": 2.0}})
    freeze(network, ["embedding"])
    groups = {group.name: group for group in parameter_groups(network, config)}
    assert {name: group.factor for name, group in groups.items()} == {
        "default": 1.0, "backbone": 0.1, "readouts": 0.5, "readouts.1": 2.0,
    }  # fmt: skip
    assert set(groups["default"].params) == {"field_feats.0.weight", "field_linear.0.weight"}
    assert set(groups["readouts"].params) == {"readouts.0.linear.weight"}
    every = [name for group in groups.values() for name in group.params]
    assert sorted(every) == sorted(n for n, p in network.named_parameters() if p.requires_grad)
    with pytest.raises(SettingsError, match="must be positive; freeze"):
        zero_config(foundation, optimizer={"groups": {"field": 0.0}})


# ---- replay ----------------------------------------------------------------------------------------------------------


def structures(path, compounds=(0, 1, 3), count=4, labels=None):
    raws = []
    for compound in compounds:
        for i in range(count):
            atoms = rattled(compound, 300 + i)
            raw = raw_from_atoms(atoms, len(raws))
            if labels is not None:
                found = label(labels, atoms, SURFACE)
                raw.info.update(REF_energy=float(found["energy"]), REF_stress=found["stress"].ravel())
                raw.arrays["REF_forces"] = found["forces"]
            raws.append(raw)
    with path.open("w") as handle:
        write_extxyz(handle, raws)
    return path


def replay_config(foundation, replay, **changes):
    heads = {
        "dielectric": {"dataset": {"path": "unused"}, "labels": {"born_effective_charges": 1}, "start_from": "mp"},
        "pt_head": {"replay": {"valid_fraction": 0, "observables": ["energy", "forces"], **replay}, "start_from": "mp"},
    }
    return heads_config(heads, model={"backbone": str(foundation), "field_blocks": "zero"}, **changes)


@lru_cache
def response_frames():
    return (*frames_of(RESPONSE, (0, 1), ("train", "train")), *frames_of(RESPONSE, (2,), ("valid",)))


@lru_cache
def cached_backbone(path, **options):
    return load_backbone(path, **options)


@pytest.fixture
def dielectric(monkeypatch):
    """Stand in for the dataset of the dielectric head; the foundation is read once."""
    from types import SimpleNamespace

    from fieldflows.training import replay, sources

    monkeypatch.setattr(replay, "load_backbone", cached_backbone)
    frames = list(response_frames())
    monkeypatch.setattr(
        sources, "open_dataset", lambda section, labels=(): SimpleNamespace(frames=frames, digest="d" * 64)
    )
    return frames


def test_labels_of_the_foundation_are_those_of_the_foundation_and_are_kept(foundation, dielectric, tmp_path):
    config = replay_config(foundation, {"path": str(structures(tmp_path / "s.xyz"))})
    data = load_heads(config, tmp_path)
    replayed = [frame for frame in data.frames if frame.head == "pt_head"]
    assert len(replayed) == 12
    network, _, _ = load_checkpoint(foundation)
    for frame in replayed[:3]:
        found = respond(network, build_graph(frame.atoms, NUMBERS, 3.5), ("energy", "forces"))
        assert float(frame.labels["energy"]) == pytest.approx(float(found["energy"][0]), abs=1e-10)
        np.testing.assert_allclose(frame.labels["forces"], found["forces"].numpy(), atol=1e-10)
    (kept,) = tmp_path.glob("replay-*.npz")
    first = kept.read_bytes()
    again = load_heads(config, tmp_path)
    assert again.digest == data.digest == load_heads(config, None).digest
    assert kept.read_bytes() == first
    kept.write_bytes(first[: len(first) // 2])
    assert float(load_heads(config, tmp_path).frames[-1].labels["energy"]) == float(data.frames[-1].labels["energy"])
    other = replay_config(foundation, {"path": str(tmp_path / "s.xyz"), "frames": 5})
    assert load_heads(other, tmp_path).digest != data.digest


def test_replay_of_the_structures_of_other_heads_and_of_formulas_that_judge(foundation, dielectric, tmp_path):
    own = load_heads(replay_config(foundation, {"from_heads": True}))
    assert [f.material for f in own.frames if f.head == "pt_head"] == ["NaCl", "NaCl", "MgO", "MgO"]
    path = structures(tmp_path / "s.xyz", compounds=(0, 2, 3), count=2)
    mixed = load_heads(replay_config(foundation, {"path": str(path)}))
    assert [(f.material, f.split) for f in mixed.frames if f.head == "pt_head"] == [
        ("NaCl", "train"), ("NaCl", "train"), ("NaF", "valid"), ("NaF", "valid"), ("MgS", "train"), ("MgS", "train"),
    ]  # fmt: skip
    tested = [f.with_(split="test") if f.split == "valid" else f for f in dielectric]
    dielectric[:] = tested
    left = load_heads(replay_config(foundation, {"path": str(path)}))
    assert {f.material for f in left.frames if f.head == "pt_head"} == {"NaCl", "MgS"}
    assert any("2 of 6 structures were left out" in note for note in left.notes)


def test_replay_with_labels_of_a_file(foundation, dielectric, tmp_path):
    labeled = structures(tmp_path / "l.xyz", labels=plain_network(seed=9))
    data = load_heads(replay_config(foundation, {"path": str(labeled), "labels": "file"}))
    frame = next(f for f in data.frames if f.head == "pt_head")
    assert float(frame.labels["energy"]) == pytest.approx(
        float(label(plain_network(seed=9), frame.atoms, ("energy",))["energy"])
    )
    with pytest.raises(LabelError, match="energy"):
        load_heads(replay_config(foundation, {"path": str(structures(tmp_path / "s.xyz")), "labels": "file"}))


def test_a_replay_without_usable_structures_is_named(foundation, dielectric, tmp_path):
    atoms = rattled(0, 1)
    atoms.numbers[:] = 56
    with (tmp_path / "s.xyz").open("w") as handle:
        write_extxyz(handle, [raw_from_atoms(atoms, 0)])
    with pytest.raises(TrainingError, match="'pt_head' has no structure to replay: of 1"):
        load_heads(replay_config(foundation, {"path": str(tmp_path / "s.xyz")}))


def test_farthest_points_are_farthest():
    points = np.random.default_rng(1).normal(size=(40, 3))
    chosen = farthest_points(points, 12)
    assert len(set(chosen)) == 12
    for k in range(1, 12):
        distance = np.linalg.norm(points[:, None] - points[chosen[:k]], axis=2).min(axis=1)
        assert distance[chosen[k]] == distance.max()
    assert len(set(farthest_points(np.zeros((5, 2)), 5))) == 5


def test_selection_of_replay_structures(foundation, dielectric, tmp_path):
    path = str(structures(tmp_path / "s.xyz"))
    materials = {}
    for selection in ("random", "farthest"):
        replay = {"path": path, "frames": 3, "selection": selection}
        first, again = (load_heads(replay_config(foundation, replay)) for _ in range(2))
        assert first.digest == again.digest
        materials[selection] = [f.material for f in first.frames if f.head == "pt_head"]
        assert len(materials[selection]) == 3
    assert sorted(materials["farthest"]) == sorted(COMPOUNDS[c][0] for c in (0, 1, 3))


def test_least_squares_energies_of_a_head_lie_on_top_of_the_foundation(foundation):
    """Labels that are those of the foundation with other atomic energies give these atomic energies back."""
    network, _, _ = load_checkpoint(foundation)
    shift = {8: 1.5, 9: -0.5, 11: 0.25, 12: 2.0}
    frames = frames_of(("energy",), (0, 1, 2), ("train", "train"), head="surface")
    values = foundation_labels(network, frames, "mp", ("energy",))["energy"]
    frames = [
        frame.with_(labels={"energy": np.array(value + sum(shift.get(int(z), 0.0) for z in frame.atoms.numbers))})
        for frame, value in zip(frames, values, strict=True)
    ]
    heads = {"surface": {"dataset": {"path": "unused"}, "start_from": "mp", "atomic_energies": "least squares"}}
    setup = prepare(heads_config(heads, model={"backbone": str(foundation)}), subsets(SmallDataset(frames)))
    for frame, loss_frame in zip(frames, setup.frames["train"], strict=True):
        graph = build_graph(frame.atoms, NUMBERS, 3.5)
        assert float(setup.network(graph)[0].detach()) + loss_frame.baseline == pytest.approx(
            float(frame.labels["energy"]), abs=1e-8
        )


@pytest.mark.slow
def test_replay_keeps_the_energies_of_the_foundation(foundation, dielectric):
    """Trained on the Z* of a few crystals through the common features, energies drift; with a replay much less."""
    reference, _, _ = load_checkpoint(foundation)
    probes = [rattled(compound, 900 + i) for compound in (0, 1) for i in range(2)]
    graphs = [build_graph(atoms, NUMBERS, 3.5) for atoms in probes]
    drift, learned = {}, {}
    for name in ("with", "without"):
        config = replay_config(foundation, {"from_heads": True})
        model = config.model.model_copy(update={"field_blocks": "random", "freeze": ("field", "readouts")})
        config = config.model_copy(update={"model": model})
        data = load_dataset(config)
        if name == "without":
            config = config.model_copy(update={"heads": {"dielectric": config.heads["dielectric"]}})
            data = SmallDataset([frame for frame in data.frames if frame.head == "dielectric"])
        setup = prepare(config, subsets(data))
        batches = [
            make_batch([f for f in setup.frames["train"] if f.head == head], setup.labels) for head in config.heads
        ]
        optimizer = torch.optim.Adam(setup.parameters.values(), lr=0.003)
        losses = []
        for _ in range(40):
            parts = [setup.loss(full_response(setup.network, batch, create_graph=True), batch)[0] for batch in batches]
            optimizer.zero_grad()
            torch.stack(parts).sum().backward(inputs=list(setup.parameters.values()))
            optimizer.step()
            losses.append(float(parts[0].detach()))
        learned[name] = losses[-1] / losses[0]
        number = setup.network.config.heads.index("mp")
        errors = [
            float((setup.network({**g, "head": torch.tensor([number])})[0] - reference(g)[0]).detach()) / len(atoms)
            for g, atoms in zip(graphs, probes, strict=True)
        ]
        drift[name] = float(np.sqrt(np.mean(np.square(errors))))
    assert max(learned.values()) < 0.97
    assert drift["with"] < 0.2 * drift["without"]
