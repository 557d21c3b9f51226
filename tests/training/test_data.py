import numpy as np
import pytest
import torch

from fieldflows.errors import LabelError, SettingsError, TrainingError, UnknownElementError
from fieldflows.training.data import (
    average_neighbors,
    composition_matrix,
    dataset_elements,
    fit_atomic_energies,
    fit_element_polarizability,
    force_scale,
    label_spread,
    make_frames,
)
from fieldflows.training.setup import prepare
from tests.training.crystals import rattled, small_dataset, teacher, tiny_config


@pytest.fixture(scope="module")
def frames():
    return small_dataset(8, 0, 0).frames


def test_atomic_energies_reproduce_sums(frames):
    numbers = dataset_elements(frames)
    truth = dict(zip(numbers, np.linspace(-5, -1, len(numbers)), strict=True))
    made = [f.with_(labels={"energy": np.array(sum(truth[z] for z in f.atoms.numbers))}) for f in frames]
    fitted = fit_atomic_energies(made, numbers)
    for frame in made:
        total = sum(fitted[numbers.index(z)] for z in frame.atoms.numbers)
        assert total == pytest.approx(float(frame.labels["energy"]))
    assert fit_atomic_energies([f.with_(labels={}) for f in frames], numbers) == [0.0] * len(numbers)


def additive(frames, truth):
    """Label frames with α = Σ a(Z)/Ω."""
    made = []
    for frame in frames:
        total = sum(truth[z] for z in frame.atoms.numbers)
        made.append(frame.with_(labels={"polarizability": total / frame.atoms.get_volume() * np.eye(3)}))
    return made


def predicted(frame, numbers, fitted):
    return sum(fitted[numbers.index(z)] for z in frame.atoms.numbers) / frame.atoms.get_volume()


def test_element_polarizabilities_are_positive_and_additive(frames):
    numbers = dataset_elements(frames)
    truth = dict(zip(numbers, np.linspace(0.05, 0.4, len(numbers)), strict=True))
    made = additive(frames * 10, truth)
    fitted = fit_element_polarizability(made, numbers)
    assert min(fitted) >= 0
    for frame in made:
        assert predicted(frame, numbers, fitted) == pytest.approx(np.trace(frame.labels["polarizability"]) / 3, rel=0.1)


def test_a_few_outliers_do_not_decide(frames):
    """Two crystals out of eighty with a hundredfold α: deviations barely notice, squares do."""
    numbers = dataset_elements(frames)
    truth = dict(zip(numbers, np.linspace(0.05, 0.4, len(numbers)), strict=True))
    made = additive(frames * 10, truth)
    clean = fit_element_polarizability(made, numbers)
    wild = [f.with_(labels={"polarizability": 100 * f.labels["polarizability"]}) for f in made[:2]] + made[2:]
    assert fit_element_polarizability(wild, numbers) == pytest.approx(clean, abs=0.02)
    counts = composition_matrix(wild, numbers)
    volumes = np.array([frame.atoms.get_volume() for frame in wild])
    target = [np.trace(frame.labels["polarizability"]) / 3 for frame in wild] * volumes
    squares, *_ = np.linalg.lstsq(counts, target, rcond=None)
    assert np.abs(squares - clean).max() > 0.2


def test_elements_without_labels_follow_their_likes(frames):
    numbers = sorted({*dataset_elements(frames), 19, 35})
    truth = {8: 0.02, 9: 0.02, 11: 0.6, 12: 0.5, 16: 0.1, 17: 0.1}
    fitted = dict(zip(numbers, fit_element_polarizability(additive(frames * 10, truth), numbers), strict=True))
    assert fitted[19] > fitted[35]


def test_the_network_starts_with_the_fitted_polarizabilities(frames):
    setup = prepare(tiny_config(), {"train": frames})
    numbers = dataset_elements(frames)
    assert setup.network.config.atomic_numbers == numbers
    assert setup.network.element_polarizability.tolist() == pytest.approx(fit_element_polarizability(frames, numbers))


def test_neighbors_of_rock_salt():
    from ase.build import bulk

    from fieldflows.datasets.frame import LabeledFrame

    frame = LabeledFrame(bulk("MgO", "rocksalt", a=4.0), {}, "MgO", "x", 0)
    assert average_neighbors([frame], 2.5) == 6
    assert average_neighbors([frame], 3.0) == 18
    with pytest.raises(TrainingError, match="cut-off"):
        average_neighbors([frame], 1.0)


def test_force_scale_is_the_root_mean_square(frames):
    every = np.concatenate([f.labels["forces"].ravel() for f in frames])
    assert force_scale(frames) == pytest.approx(np.sqrt(np.mean(every**2)))
    assert force_scale([f.with_(labels={}) for f in frames]) == 1.0


def test_spread_of_labels(frames):
    made = make_frames(frames, ("born_effective_charges",), teacher().config.atomic_numbers, 3.5, torch.float64)
    every = np.concatenate([f.labels["born_effective_charges"].ravel() for f in frames])
    assert label_spread(made, "born_effective_charges") == pytest.approx(every.std())
    with pytest.raises(SettingsError, match="spread"):
        label_spread(made, "forces")


@pytest.mark.parametrize(
    ("value", "found"),
    [(np.zeros((3, 3, 3)), "shape"), (np.full((2, 3, 3), np.nan), "not finite"), (np.zeros((2, 9)), "shape")],
)
def test_malformed_labels_name_the_frame(frames, value, found):
    bad = frames[0].with_(labels={"born_effective_charges": value})
    with pytest.raises(LabelError, match=rf"{found}.*"):
        make_frames([bad], ("born_effective_charges",), teacher().config.atomic_numbers, 3.5, torch.float64)


def test_evaluation_only_labels_are_ignored(frames):
    extended = frames[0].with_(labels={"epsilon_ionic": np.eye(3)})
    assert make_frames([extended], ("polarizability",), teacher().config.atomic_numbers, 3.5, torch.float64) == []


def test_elements_may_be_named_but_must_cover_the_data(frames):
    setup = prepare(
        tiny_config(model={**tiny_config().model.model_dump(), "elements": _all(frames, "Ba")}), {"train": frames}
    )
    assert 56 in setup.network.config.atomic_numbers
    config = tiny_config(model={**tiny_config().model.model_dump(), "elements": ("Na", "Cl")})
    with pytest.raises(SettingsError, match=r"leaves out .*Mg"):
        prepare(config, {"train": frames})
    config = tiny_config(model={**tiny_config().model.model_dump(), "elements": ("Xx",)})
    with pytest.raises(SettingsError, match="no element 'Xx'"):
        prepare(config, {"train": frames})


def _all(frames, *more):
    return tuple(sorted({symbol for frame in frames for symbol in frame.atoms.symbols} | set(more)))


def test_unknown_elements_are_named(frames):
    with pytest.raises(UnknownElementError, match="holds"):
        make_frames(frames, ("polarizability",), [1, 2], 3.5, torch.float64)
    assert len(rattled(0, 0)) == 2


def test_a_backbone_is_inherited(frames, tmp_path):
    from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, save_checkpoint

    network = teacher()
    metadata = CheckpointMetadata(name="teacher", network=network.config, trained_labels=("polarizability",))
    save_checkpoint(tmp_path / "teacher.safetensors", network, metadata)
    config = tiny_config(model={"name": "child", "backbone": str(tmp_path / "teacher.safetensors")})
    setup = prepare(config, {"train": frames})
    expected = {k: v for k, v in network.state_dict().items() if "atomic_energies" not in k}
    found = setup.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert setup.atomic_energies[0].tolist() == pytest.approx(network.config.atomic_energies)
    assert setup.provenance["backbone"]["name"] == "teacher"
