"""The loss against sums written out by hand, and weights and scales in physical terms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import make_supercell

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.errors import LabelError, SettingsError
from fieldflows.training.config import LossSection, Term, TrainingConfig
from fieldflows.training.data import make_batch, make_frames
from fieldflows.training.data_config import DatasetSection
from fieldflows.training.loss_config import parse_scale
from fieldflows.training.losses import Loss, force_delta, quantum_distance
from fieldflows.training.setup import prepare
from fieldflows.training.sources import at_rest, open_dataset, thinned
from fieldflows.training.weights import make_loss, spread_by_element, sum_rule_residual, trivial_losses
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM
from tests.training.crystals import LABELS, label, small_dataset, teacher, tiny_config

NUMBERS = teacher().config.atomic_numbers
DELTA, SCALE = 0.3, 0.7


@pytest.fixture(scope="module")
def frames():
    """Four frames of 2, 2, 4 and 6 atoms, some without some labels, with weights."""
    items = small_dataset(2, 0, 0).frames
    for count in (2, 3):
        atoms = make_supercell(items[0].atoms, np.diag([count, 1, 1]))
        atoms.positions += 0.05 * np.random.default_rng(count).normal(size=(len(atoms), 3))
        items.append(items[0].with_(atoms=atoms, labels=label(teacher(), atoms)))
    keep = [
        LABELS,
        ("energy", "polarization", "polarizability"),
        ("forces", "stress", "born_effective_charges"),
        LABELS,
    ]
    items = [f.with_(labels={k: f.labels[k] for k in names}) for f, names in zip(items, keep, strict=True)]
    made = make_frames(items, LABELS, NUMBERS, 3.5, torch.float64, [-3.0, -2.0, -1.0, -4.0, -2.5, -1.5])
    factors = [{}, {"energy": 3.0}, {"born_effective_charges": 0.2, "forces": 0.5}, {}]
    return [replace(f, weight=w, label_weights=l) for f, w, l in zip(made, (1.0, 0.5, 2.0, 1.5), factors, strict=True)]


@pytest.fixture(scope="module")
def errors(frames):
    """Random errors by frame and label, polarizations of several quanta."""
    generator = np.random.default_rng(4)
    found = []
    for frame in frames:
        found.append({key: generator.normal(size=np.shape(value)) for key, value in frame.labels.items()})
    return found


def predictions(frames, errors, batch):
    result = {}
    for key, target in batch.targets.items():
        shift = [e[key] if key in e else np.full(np.shape(f.labels.get(key, _empty(key, f))), 9.0)
                 for e, f in zip(errors, frames, strict=True)]  # fmt: skip
        joined = np.concatenate(shift) if key in ("forces", "born_effective_charges") else np.stack(shift)
        result[key] = target + torch.as_tensor(joined)
    return result


def _empty(key, frame):
    n = len(frame.atoms)
    return np.zeros({"energy": (), "forces": (n, 3), "stress": (3, 3), "polarization": (3,),
                     "born_effective_charges": (n, 3, 3), "polarizability": (3, 3)}[key])  # fmt: skip


def huber(x, delta=DELTA):
    """The Huber function of a number, by its definition."""
    return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)


def folded(difference, cell):
    """ΔP less whole quanta, found by trying them around the solution of the linear system."""
    volume = abs(np.linalg.det(cell))
    quanta = cell / volume
    fractions = np.array([np.dot(difference, np.cross(cell[(i + 1) % 3], cell[(i + 2) % 3])) for i in range(3)])
    fractions *= np.sign(np.linalg.det(cell))
    return sum((fractions[i] - np.floor(fractions[i] + 0.5)) * quanta[i] for i in range(3))


def by_hand(frames, errors, weights, printed=False):
    """Eqs. 29 to 33 atom by atom and component by component."""
    total = 0.0
    for key in LABELS:
        numerator = denominator = 0.0
        for frame, error in zip(frames, errors, strict=True):
            if key not in frame.labels:
                continue
            n, w = len(frame.atoms), frame.weight * frame.label_weights.get(key, 1.0)
            if key == "energy":
                mean = huber(float(error[key]) / n / SCALE)
            elif key == "polarization":
                mean = sum(huber(x / SCALE) for x in folded(error[key], frame.atoms.cell[:])) / 3
            elif key in ("forces", "born_effective_charges"):
                atoms = [sum(huber(x / SCALE) for x in atom.ravel()) / atom.size for atom in error[key]]
                mean = sum(atoms) / n
            else:
                mean = sum(huber(x / SCALE) for x in error[key].ravel()) / 9
            numerator += w * mean
            denominator += w * n if printed and key == "born_effective_charges" else w
        total += weights[key] * numerator / denominator
    return total


@pytest.mark.parametrize("printed", [False, True])
def test_the_loss_is_the_sum_of_equations_29_to_33(frames, errors, printed):
    weights = dict(zip(LABELS, (1.0, 10.0, 0.5, 3.0, 7.0, 2.0), strict=True))
    terms = {key: Term(weight=weights[key], delta=DELTA) for key in LABELS}
    if printed:
        terms["born_effective_charges"] = Term(weight=7.0, delta=DELTA, normalization="printed")
    loss = Loss(terms, dict.fromkeys(LABELS, SCALE))
    batch = make_batch(frames, LABELS)
    found = float(loss(predictions(frames, errors, batch), batch)[0])
    assert found == pytest.approx(by_hand(frames, errors, weights, printed), rel=1e-12)
    assert found != pytest.approx(by_hand(frames, errors, weights, not printed), rel=1e-3)


def test_what_frames_without_a_label_predict_does_not_matter(frames, errors):
    loss = Loss({key: Term() for key in LABELS}, dict.fromkeys(LABELS, 1.0))
    batch = make_batch(frames, LABELS)
    first = predictions(frames, errors, batch)
    second = {key: value.clone() for key, value in first.items()}
    second["energy"][2] += 5.0
    second["forces"][2:4] -= 3.0
    second["born_effective_charges"][2:4] += 1.0
    assert float(loss(second, batch)[0]) == float(loss(first, batch)[0])


def test_the_public_loss_is_the_mean_over_all_that_a_batch_holds(frames, errors):
    """universal_field: Huber with δ = 0.01, forces and Z* over all atoms, missing labels counted, P in quanta."""
    section = LossSection.model_validate({"variant": "public", "terms": {key: {"weight": 2.0} for key in LABELS}})
    assert section.terms["forces"].kind == "force huber"
    assert LossSection.model_validate(section.model_dump()) == section
    plain = [replace(frame, weight=1.0, label_weights={}) for frame in frames]
    loss, _ = make_loss(section, plain)
    batch = make_batch(plain, LABELS)
    _, parts = loss(predictions(frames, errors, batch), batch)
    atoms = sum(len(frame.atoms) for frame in frames)
    for key, components in (("forces", 3), ("born_effective_charges", 9)):
        values = [huber(x, 0.01) for e in errors for x in np.ravel(e.get(key, []))]
        assert float(parts[key]) == pytest.approx(2 * sum(values) / (components * atoms), rel=1e-12)
    values = [huber(x, 0.01) for e in errors for x in np.ravel(e.get("polarizability", []))]
    assert float(parts["polarizability"]) == pytest.approx(2 * sum(values) / (9 * 4), rel=1e-12)
    distances = []
    for frame, error in zip(frames, errors, strict=True):
        if "polarization" in error:
            quanta = frame.atoms.cell[:] / frame.atoms.get_volume()
            c = folded(error["polarization"], frame.atoms.cell[:]) @ np.linalg.inv(quanta)
            metric = 3 * quanta @ quanta.T / np.trace(quanta @ quanta.T)
            distances.append(c @ metric @ c)
    assert float(parts["polarization"]) == pytest.approx(2 * sum(distances) / 4, rel=1e-10)


def test_deltas_of_large_forces():
    labels = torch.tensor([[10.0, 0, 0], [99.9, 0, 0], [100.0, 0, 0], [0, 150, 150], [0, 0, 300], [500, 0, 0]])
    torch.testing.assert_close(force_delta(labels, 0.01)[:, 0], 0.01 * torch.tensor([1, 1, 0.7, 0.4, 0.1, 0.1]))


def test_a_cubic_quantum_is_the_unit_of_the_quantum_metric():
    cell = 4.0 * torch.eye(3, dtype=torch.float64)[None]
    assert float(quantum_distance(torch.tensor([[0.5 / 16, 0, 0]], dtype=torch.float64), cell)) == pytest.approx(0.25)


# ---- scales and weights ----------------------------------------------------------------------------------------------


def test_scales_with_units():
    assert parse_scale("energy", "5 meV") == pytest.approx(0.005)
    assert parse_scale("forces", "30 meV/Å") == pytest.approx(0.03)
    assert parse_scale("stress", "1 GPa") == pytest.approx(0.0062415091, rel=1e-7)
    assert parse_scale("stress", "10 kbar") == pytest.approx(parse_scale("stress", "1 GPa"))
    assert parse_scale("polarization", "2 µC/cm²") == pytest.approx(2 / E_PER_A2_TO_UC_PER_CM2)
    assert parse_scale("polarizability", "0.1 ε∞") == pytest.approx(0.1 * EPSILON_VACUUM)
    assert parse_scale("born_effective_charges", 0.2) == 0.2
    for observable, text in (("forces", "1 GPa"), ("energy", "-1 eV"), ("energy", "1eV"), ("forces", "a eV/Å")):
        with pytest.raises(ValueError, match=f"scale of {observable}"):
            parse_scale(observable, text)
    with pytest.raises(SettingsError, match=r"loss\.terms.*'0\.01 meV/Å'"):
        TrainingConfig.from_dict({"dataset": {"path": "x"}, "loss": {"terms": {"forces": {"scale": "3 kcal"}}}})


@pytest.mark.parametrize(
    ("name", "term", "message"),
    [
        ("energy", {"normalization": "printed"}, "not an observable per atom"),
        ("stress", {"scale": "spread by element"}, "not an observable per atom"),
        ("energy", {"kind": "force huber"}, "it is for forces"),
        ("polarization", {"kind": "quantum metric", "scale": "spread"}, "plain number"),
        ("forces", {"weight": -1}, "must not be negative"),
        ("forces", {"weight": "much"}, "auto"),
    ],
)
def test_terms_that_make_no_sense_are_refused(name, term, message):
    with pytest.raises(SettingsError, match=message):
        TrainingConfig.from_dict(
            {"dataset": {"path": "x"}, "loss": {"terms": {"born_effective_charges": {}, name: term}}}
        )


def test_automatic_weights_give_every_term_its_share_of_a_trivial_prediction(frames):
    terms = {key: {"weight": "auto", "scale": "spread", "kind": "l1"} for key in LABELS}
    terms["forces"]["share"] = 3.0
    terms["polarization"] = {"weight": 2.0, "scale": "1 µC/cm²"}
    section = LossSection.model_validate({"terms": terms})
    loss, summaries = make_loss(section, frames)
    for key, value in trivial_losses(loss, frames).items():
        if key != "polarization":
            assert value == pytest.approx(3.0 if key == "forces" else 1.0, rel=1e-9)
    told = {item.observable: item for item in summaries}
    assert told["polarization"].weight == 2.0
    assert told["forces"].trivial == pytest.approx(3.0)
    assert str(told["energy"]).startswith("energy: weight ")
    assert "eV/atom (auto, spread), 3 frames, trivial prediction 1" in str(told["energy"])
    # forces: the trivial prediction is zero
    scale = np.concatenate([f.labels["forces"].ravel() for f in frames if "forces" in f.labels]).std()
    labeled = [f for f in frames if "forces" in f.labels]
    means = [np.abs(f.labels["forces"]).mean() / scale for f in labeled]
    weights = [f.label_weight("forces") for f in labeled]
    assert told["forces"].weight == pytest.approx(3.0 / np.average(means, weights=weights), rel=1e-10)


def test_spread_by_element(frames):
    key = "born_effective_charges"
    labeled = [frame for frame in frames if key in frame.labels]
    table = spread_by_element(labeled, key)
    numbers = np.concatenate([frame.atoms.numbers for frame in labeled])
    values = np.concatenate([frame.labels[key] for frame in labeled]).reshape(-1, 9)
    squares = {z: np.square(values[numbers == z] - values[numbers == z].mean(0)).mean() for z in set(numbers.tolist())}
    counts = {z: int((numbers == z).sum()) for z in squares}
    common = sum(squares[z] * counts[z] for z in squares) / len(numbers)
    for z, count in counts.items():
        expected = np.sqrt((count * squares[z] + 10 * common) / (count + 10))
        assert float(table[z]) == pytest.approx(expected, rel=1e-12)
    assert float(table[92]) == pytest.approx(np.sqrt(common))
    loss, _ = make_loss(LossSection(terms={key: Term(kind="mse", scale="spread by element")}), labeled)
    batch = make_batch(labeled, (key,))
    error = torch.ones_like(batch.targets[key])
    by_frame = loss.per_frame({key: batch.targets[key] + error}, batch)[key]
    for frame, value in zip(labeled, by_frame, strict=True):
        assert float(value) == pytest.approx(np.mean([1 / float(table[z]) ** 2 for z in frame.atoms.numbers]))


def test_labels_that_do_not_differ_give_no_scale(frames):
    zero = [replace(f, labels={"forces": np.zeros((len(f.atoms), 3))}) for f in frames]
    for term in (Term(scale="spread by element"), Term(weight="auto"), Term(scale="spread")):
        with pytest.raises(SettingsError, match="forces"):
            make_loss(LossSection(terms={"forces": term}), zero)


def test_charges_that_break_the_sum_rule_weigh_less():
    """What the cleaning removed decides, with what is left."""
    data = small_dataset(3, 1, 0)
    removed = [np.zeros((3, 3)), 0.05 * np.eye(3), 0.2 * np.ones((3, 3))]
    items = [f.with_(extra={"sum_rule_residual": r}) for f, r in zip(data.subset("train"), removed, strict=True)]
    terms = {"born_effective_charges": {}, "polarizability": {}}
    config = tiny_config(loss={"terms": terms, "sum_rule_scale": 0.1})
    setup = prepare(config, {"train": items, "valid": data.subset("valid")})
    for frame, residual in zip(setup.frames["train"], (0.0, 0.05, 0.2), strict=True):
        assert frame.label_weight("born_effective_charges") == pytest.approx(1 / (1 + (residual / 0.1) ** 2), rel=1e-6)
        assert frame.label_weight("polarizability") == 1.0
    labels = {"born_effective_charges": np.stack([np.eye(3), np.zeros((3, 3))])}
    assert sum_rule_residual(labels, None) == 0.5
    assert sum_rule_residual(labels, -0.5 * np.eye(3)) == 0.0


# ---- crystals at rest ------------------------------------------------------------------------------------------------


def test_crystals_that_the_data_call_relaxed_get_zero_forces_and_stress():
    data = small_dataset(3, 0, 0, names=("born_effective_charges", "stress")).frames
    items = [data[0].with_(extra={"relaxed": True}), data[1], data[2].with_(source="md", extra={"relaxed": True})]
    found = at_rest(items, "stated", ("forces", "stress"), moving=("md",))
    assert np.array_equal(found[0].labels["forces"], np.zeros((2, 3)))
    assert np.array_equal(found[0].labels["stress"], data[0].labels["stress"])
    assert ["forces" in frame.labels for frame in found] == [True, False, False]
    assert "stress" in at_rest(items, "stated", ("forces",))[0].labels
    named = at_rest(items, ("teacher",), ("stress", "forces"))
    assert ["forces" in frame.labels for frame in named] == [True, True, False]


def test_what_a_file_says_about_rest_reaches_the_labels(tmp_path):
    from ase.io import write

    crystals = [frame.atoms.copy() for frame in small_dataset(2, 0, 0, names=("energy",)).frames]
    for number, atoms in enumerate(crystals):
        atoms.info = {"REF_energy": -3.0 - number, "relaxed": number == 0}
    write(tmp_path / "crystals.xyz", crystals)
    source = {"type": "extxyz", "name": "mine", "path": str(tmp_path / "crystals.xyz"), "labels": {"energy": "eV"}}
    for moving, expected in ((False, [True, False]), (True, [False, False])):
        config = DatasetConfig.from_dict({"name": "d", "sources": [{**source, "is_trajectory": moving}]})
        folder = build_dataset(config).save(tmp_path / f"built{moving}")
        data = open_dataset(DatasetSection(path=str(folder), relaxed="stated"), ("energy", "forces"))
        assert ["forces" in frame.labels for frame in data.frames] == expected
    with pytest.raises(SettingsError, match="a trajectory or a path"):
        open_dataset(DatasetSection(path=str(folder), relaxed=("mine",)), ("forces",))


def test_weights_of_frames_come_from_the_file(tmp_path):
    from ase.io import write

    crystals = [frame.atoms.copy() for frame in small_dataset(2, 0, 0, names=("energy",)).frames]
    for atoms, weight in zip(crystals, (0.25, 2.0), strict=True):
        atoms.info = {"REF_energy": -3.0, "config_weight": weight}
    write(tmp_path / "crystals.xyz", crystals)
    source = {"type": "extxyz", "path": str(tmp_path / "crystals.xyz"), "labels": {"energy": "eV"}}
    data = build_dataset(DatasetConfig.from_dict({"name": "d", "sources": [source]}))
    made = make_frames(data.frames, ("energy",), NUMBERS, 3.5, torch.float64)
    assert [frame.weight for frame in made] == [0.25, 2.0]
    loss = Loss({"energy": Term(kind="l1")}, {"energy": 1.0})
    batch = make_batch(made, ("energy",))
    error = torch.tensor([2.0, 4.0], dtype=torch.float64)
    found = float(loss({"energy": batch.targets["energy"] + error}, batch)[0])
    assert found == pytest.approx((0.25 * 1.0 + 2.0 * 2.0) / 2.25)
    wrong = [data.frames[0].with_(extra={"weight": 0.0})]
    with pytest.raises(LabelError, match=r"weight of NaCl .* is 0; it must be positive"):
        make_frames(wrong, ("energy",), NUMBERS, 3.5, torch.float64)


def test_products_with_directions_use_the_scale_of_each_element(frames):
    """For v = e_i the mean over i of |v·ΔZ|²/3 is |ΔZ|²/9, also with scales by element."""
    key = "born_effective_charges"
    labeled = [frame for frame in frames if key in frame.labels]
    loss, _ = make_loss(LossSection(terms={key: Term(kind="mse", scale="spread by element")}), labeled)
    batch = make_batch(labeled, (key,))
    torch.manual_seed(2)
    predicted = torch.randn_like(batch.targets[key])
    total = 0.0
    for axis in range(3):
        v = torch.eye(3, dtype=torch.float64)[axis].expand(batch.n_graphs, 3)
        total += float(loss({key: predicted[:, axis]}, batch, v)[0]) / 3
    assert total == pytest.approx(float(loss({key: predicted}, batch)[0]), rel=1e-12)


def test_what_is_not_at_rest_is_refused():
    data = small_dataset(2, 0, 0, names=("forces",)).frames
    with pytest.raises(SettingsError, match="a trajectory or a path"):
        at_rest(data, ("teacher",), ("forces",), moving=("teacher",))
    moved = [data[0].with_(labels={"forces": np.array([[0.0, 0.3, 0.0], [0.0, -0.3, 0.0]])})]
    with pytest.raises(LabelError, match=r"NaCl \(teacher:0\) is said to be relaxed, but .* up to 0\.3 eV/Å"):
        at_rest(moved, ("teacher",), ("forces", "stress"))
    with pytest.raises(SettingsError, match="names the source 'teachers'"):
        at_rest(data, ("teachers",), ("forces",))
    with pytest.raises(SettingsError, match="a term for neither"):
        at_rest(data, ("teacher",), ("polarizability",))


def test_new_options_leave_old_digests_alone():
    """The first digest is that of the code before heads and loss variants existed."""
    config = TrainingConfig.from_dict({"dataset": {"path": "x"}, "run": {"seed": 3}})
    assert config.digest == "2bc4345844499ca74fbe15b837b2ad9c800c3de12e0402a1bc277af01ba439fb"
    changed = [
        {"loss": {"terms": {"polarizability": {"weight": "auto"}}}},
        {"loss": {"terms": {"born_effective_charges": {"normalization": "printed"}}}},
        {"loss": {"sum_rule_scale": 0.1}},
        {"model": {"freeze": ["embedding"]}},
        {"optimizer": {"groups": {"field": 2.0}}},
        {"dataset": {"path": "x", "relaxed": "stated"}, "loss": {"terms": {"forces": {}}}},
    ]
    digests = {TrainingConfig.from_dict({"dataset": {"path": "x"}, "run": {"seed": 3}, **c}).digest for c in changed}
    assert len(digests | {config.digest}) == len(changed) + 1


def test_frames_of_paths_are_thinned_in_the_training_subset_alone():
    items = [
        item.with_(split=split, extra={"path_index": k})
        for split, item in zip(("train", "valid"), small_dataset(2, 0, 0).frames, strict=True)
        for k in range(10)
    ]
    plain = small_dataset(1, 0, 0).frames[0].with_(split="train", extra={})
    found = thinned([*items, plain], (1, 9))
    assert [frame.extra["path_index"] for frame in found if "path_index" in frame.extra] == [1, 9, *range(10)]
    assert found[-1] is plain
    with pytest.raises(SettingsError, match="they have the numbers 0 to 9"):
        thinned(items, (10,))
    with pytest.raises(SettingsError, match="no frame is of a path"):
        thinned([plain], (9,))
