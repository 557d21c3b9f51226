"""The report against an independent road: the checkpoint, loaded as any user does, evaluated frame by frame."""

import json

import numpy as np
import pytest
from PIL import Image

from fieldflows import load_model
from fieldflows.errors import CapabilityError, EvaluationError, TrainingError
from fieldflows.evaluation.baselines import Baselines
from fieldflows.evaluation.predict import predict_frames
from fieldflows.evaluation.statistics import evaluate_quantities
from fieldflows.plotting import learning_curves, parity, training_errors
from fieldflows.training.document import training_document
from fieldflows.training.loop import train
from fieldflows.training.result import TrainingResult
from fieldflows.units import E_PER_A2_TO_UC_PER_CM2, EPSILON_VACUUM
from tests.training.crystals import ALL_TERMS, small_dataset, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    data = small_dataset(5, 2, 2)
    config = tiny_config(run={"epochs": 2}, loss={"terms": ALL_TERMS})
    return config, data, train(config, directory, dataset=data)


def test_errors_in_the_report_are_those_of_the_saved_model(run):
    _, data, result = run
    model = load_model(result.checkpoint)
    frames = data.subset("test")
    charges, epsilons, energies, forces, polarizations = [], [], [], [], []
    for frame in frames:
        found = model.evaluate(
            frame.atoms,
            observables=("energy", "forces", "polarization", "born_effective_charges", "polarizability"),
        )
        difference = found.born_effective_charges - frame.labels["born_effective_charges"]
        charges += [abs(difference[k, i, i]) for k in range(len(difference)) for i in range(3)]
        epsilons += list(np.abs(np.diag(found.polarizability - frame.labels["polarizability"])) / EPSILON_VACUUM)
        energies.append(abs(found.energy - float(frame.labels["energy"])) / len(frame.atoms) * 1000)
        forces += list(np.abs(found.forces - frame.labels["forces"]).ravel() * 1000)
        polarizations += list(np.abs(found.polarization - frame.labels["polarization"]) * E_PER_A2_TO_UC_PER_CM2)
    metrics = json.loads((result.directory / "metrics.json").read_text())["model"]["test"]
    assert metrics["born_charge_diagonal"]["mae"] == pytest.approx(np.mean(charges), rel=1e-8)
    assert metrics["epsilon_electronic_diagonal"]["mae"] == pytest.approx(np.mean(epsilons), rel=1e-8)
    assert metrics["energy_per_atom"]["mae"] == pytest.approx(np.mean(energies), rel=1e-6)
    assert metrics["forces"]["mae"] == pytest.approx(np.mean(forces), rel=1e-8)
    assert metrics["polarization"]["mae"] == pytest.approx(np.mean(polarizations), rel=1e-6)


def test_an_evaluation_agrees_with_the_report(run):
    _, data, result = run
    found = predict_frames(load_model(result.checkpoint), data.subset("test"))
    baselines = Baselines(data.subset("train"), found.labels, forest="off")
    quantities = evaluate_quantities(found.frames, found.predictions, baselines)
    assert set(result.metrics["test"]) < set(quantities)
    for name, values in result.metrics["test"].items():
        assert quantities[name].model.mae == pytest.approx(values["mae"], rel=1e-6), name
        (trivial,) = quantities[name].baselines.values()
        assert trivial.mae == pytest.approx(result.baselines["test"][name]["mae"], rel=1e-6), name
    assert found.problems == []


def test_an_evaluation_isolates_frames_that_cannot_be_evaluated(run):
    _, data, result = run
    good = data.subset("test")
    unknown, close = good[0].atoms.copy(), good[0].atoms.copy()
    unknown.numbers[0] = 92
    close.positions[1] = close.positions[0] + 1e-4
    frames = [good[0].with_(atoms=unknown, material="U?"), good[0].with_(atoms=close, material="close"), *good]
    found = predict_frames(load_model(result.checkpoint), frames)
    assert [frame.name for frame in found.frames] == [frame.name for frame in good]
    assert [problem.kind for problem in found.problems] == ["unknown_element", "failed"]
    assert "U" in found.problems[0].reason
    with pytest.raises(EvaluationError, match="None of the 1 frames") as caught:
        predict_frames(load_model(result.checkpoint), frames[:1])
    assert "elements" in caught.value.hint


def test_an_evaluation_refuses_what_was_not_trained(run, tmp_path):
    _, data, _ = run
    electronic = train(tiny_config(run={"epochs": 1}), tmp_path, dataset=data, figures=False)
    model = load_model(electronic.checkpoint)
    frames = data.subset("test")
    with pytest.raises(CapabilityError, match="forces"):
        predict_frames(model, frames, labels=("forces",))
    with pytest.raises(EvaluationError, match="has a label"):
        predict_frames(model, [frame.with_(labels={}) for frame in frames])
    only = [frame.with_(labels={"polarization": frame.labels["polarization"]}) for frame in frames]
    with pytest.raises(EvaluationError, match="they hold polarization") as caught:
        predict_frames(model, only)
    assert "--label polarization" in caught.value.hint
    assert predict_frames(model, only, labels=("polarization",)).labels == ("polarization",)


def test_figures_are_drawn(run, tmp_path):
    config, _, result = run
    names = {path.name for path in result.directory.glob("*.png")}
    assert names == {"learning_curves.png", *(f"parity_{quantity}.png" for quantity in result.metrics["test"])}
    for name in names:
        with Image.open(result.directory / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 10
    document = training_document(config, result)
    assert len(learning_curves(document, tmp_path / "curves.png").axes) == 1 + 7
    assert training_errors(document, tmp_path / "errors.png").axes[0].get_ylabel().startswith("MAE")
    assert (tmp_path / "errors.png").stat().st_size > 1000


def test_parity_states_the_errors():
    x = np.linspace(0, 1, 11)
    figure = parity({"test": (x, x + 0.1)}, "n", "1")
    (text,) = [item.get_text() for item in figure.axes[0].get_legend().get_texts()]
    assert "MAE 0.1" in text
    assert "RMSE 0.1" in text
    assert "R² 0.900" in text
    assert figure.axes[0].get_xlabel() == "n, label"


def test_model_card_states_the_facts(run):
    _, data, result = run
    card = (result.directory / "README.md").read_text()
    assert result.sha256 in card
    assert data.digest in card
    assert "| Frames | train 5, valid 2, test 2 |" in card
    value = result.metrics["test"]["born_charge_diagonal"]["mae"]
    row = next(line for line in card.splitlines() if line.startswith("| Z* (diagonal)"))
    assert f"{value:.4g}" in row


def test_document_round_trip(run):
    from fieldflows.schemas.training import TrainingDocument

    config, data, result = run
    document = training_document(config, result)
    assert TrainingDocument.from_json_dict(json.loads(json.dumps(document.to_json_dict()))) == document
    assert document.dataset_digest == data.digest
    assert document.trained_labels == tuple(ALL_TERMS)
    assert set(document.elements) == {s for frame in data.frames for s in frame.atoms.symbols}
    assert document.metrics["valid"]["forces"].unit == "meV/Å"
    assert document.frames == {"train": 5, "valid": 2, "test": 2}


def test_an_interrupted_run_has_no_document(run, tmp_path):
    config, _, _ = run
    stopped = TrainingResult("interrupted", tmp_path, None, None, steps=3)
    with pytest.raises(TrainingError, match="stopped at step 3"):
        training_document(config, stopped)


def test_provenance_names_formulas_and_files_but_no_paths(run):
    _, _, result = run
    provenance = load_model(result.checkpoint).info.provenance
    assert provenance["formulas"]["train"]
    assert provenance["formulas"]["train"] == sorted(set(provenance["formulas"]["train"]))
    assert str(result.directory.parent) not in json.dumps(provenance)


def test_configuration_keeps_names_of_files_only(tmp_path):
    from fieldflows.training.report import portable_configuration

    config = tiny_config(dataset={"config": str(tmp_path / "labels.yaml"), "path": None})
    assert config.dataset.config == str(tmp_path / "labels.yaml")
    assert portable_configuration(config)["dataset"]["config"] == "labels.yaml"
