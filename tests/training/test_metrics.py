import numpy as np
import pytest

from fieldflows.training.metrics import TrivialPredictor, collect, errors, evaluate_metrics, summary
from fieldflows.units import EPSILON_VACUUM
from tests.training.crystals import small_dataset


@pytest.fixture(scope="module")
def frames():
    return small_dataset(4, 0, 0).frames


def test_errors_in_closed_form():
    reference, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 3.0, 4.0])
    found = errors(reference, predicted)
    assert found["mae"] == pytest.approx(0.75)
    assert found["rmse"] == pytest.approx(np.sqrt(5 / 4))
    assert found["r2"] == pytest.approx(np.corrcoef(reference, predicted)[0, 1] ** 2, abs=0.2)
    assert found["r2"] == pytest.approx(1 - 5 / 14)
    assert errors(np.ones(3), np.zeros(3))["r2"] is None


def test_units(frames):
    """Shift every observable by one internal unit and read the errors in the units that are reported."""
    shifted = [{key: value + 1.0 for key, value in frame.labels.items() if key != "polarization"} for frame in frames]
    found = evaluate_metrics(frames, shifted)
    assert found["energy_per_atom"]["mae"] == pytest.approx(500.0)  # two atoms each, meV/atom
    assert found["forces"]["mae"] == pytest.approx(1000.0)
    assert found["born_charge_diagonal"]["mae"] == pytest.approx(1.0)
    assert found["born_charge_off_diagonal"]["rmse"] == pytest.approx(1.0)
    assert found["epsilon_electronic_diagonal"]["mae"] == pytest.approx(1 / EPSILON_VACUUM)
    assert found["epsilon_electronic_diagonal"]["count"] == 12
    assert found["epsilon_electronic_off_diagonal"]["count"] == 24
    assert "polarization" not in found


def test_refractive_index(frames):
    frame = frames[0].with_(labels={"polarizability": EPSILON_VACUUM * np.diag([2.0, 3.0, 7.0])})
    quantity, reference, predicted = collect([frame], [{"polarizability": EPSILON_VACUUM * 3 * np.eye(3)}])[
        "refractive_index"
    ]
    assert quantity.unit == "1"
    assert reference == pytest.approx([np.sqrt(1 + 12 / 3)])
    assert predicted == pytest.approx([2.0])


def test_polarizations_are_compared_modulo_quanta(frames):
    frame = frames[0]
    quanta = frame.atoms.cell[:] / frame.atoms.get_volume()
    small = np.array([1e-4, -2e-4, 3e-4])
    prediction = {"polarization": frame.labels["polarization"] + 3 * quanta[1] - quanta[2] + small}
    found = evaluate_metrics([frame], [prediction])["polarization"]
    assert found["mae"] == pytest.approx(2e-4 * 1602.176634, rel=1e-6)


def test_trivial_predictor_is_the_median_by_element(frames):
    labels = [
        {"born_effective_charges": np.array([q * np.eye(3), -q * np.eye(3)]), "polarizability": a * np.eye(3)}
        for q, a in ((1.0, 0.01), (2.0, 0.02), (9.0, 0.05))
    ]
    magnesia = next(f for f in frames if f.material == "MgO")
    made = [magnesia.with_(labels=item) for item in labels]
    trivial = TrivialPredictor(made, {8: -1.0, 12: -3.0})
    guess = trivial.predict(magnesia)
    charges = dict(zip(magnesia.atoms.numbers, guess["born_effective_charges"], strict=True))
    assert charges[12] == pytest.approx(2 * np.eye(3))
    assert charges[8] == pytest.approx(-2 * np.eye(3))
    assert guess["polarizability"] == pytest.approx(0.02 * np.eye(3))
    assert guess["energy"] == pytest.approx(-4.0)
    found = evaluate_metrics(made, [{k: guess[k] for k in labels[0]}] * 3)
    assert found["born_charge_diagonal"]["mae"] == pytest.approx((1 + 0 + 7) / 3)


def test_summary_names_units(frames):
    text = summary(evaluate_metrics(frames, [frame.labels for frame in frames]))
    assert "Z* 0 e" in text
    assert "meV/atom" in text
    assert "off-diagonal" not in text
