import math

import pytest

from fieldflows.errors import SettingsError
from fieldflows.training.config import RunSection, TrainingConfig
from fieldflows.training.state import TrainingState
from fieldflows.training.stopping import Judge

PARTS = {"forces": 1.0, "polarizability": 3.0}


def new_state():
    return TrainingState("c", "d", best={"score": math.inf, "epoch": None, "waited": 0})


def test_the_score_is_the_loss_or_a_weighted_sum_of_its_parts():
    assert Judge(RunSection(), PARTS).score(PARTS, 4.0) == 4.0
    judge = Judge(RunSection(score={"polarizability": 0.5, "forces": 0.0}), PARTS)
    assert judge.score(PARTS, 4.0) == 1.5


def test_a_run_stops_when_all_watched_labels_have_stopped():
    judge, state = Judge(RunSection(label_patience={"forces": 2, "polarizability": 1}), PARTS), new_state()
    assert not judge.exhausted(state)
    expected = [
        ({"forces": 1.0, "polarizability": 1.0}, False),
        ({"forces": 0.9, "polarizability": 1.0}, False),  # polarizability waits, forces improve
        ({"forces": 0.9, "polarizability": 0.8}, False),  # the other way round
        ({"forces": 0.9, "polarizability": 0.8}, True),  # two without, one without
        ({"forces": 0.95, "polarizability": 0.7}, False),  # one that improves again goes on
        ({"forces": 0.95, "polarizability": 0.7}, True),
    ]
    for parts, stopped in expected:
        judge.observe(parts, state)
        assert judge.exhausted(state) == stopped, parts


def test_patience_with_the_score_is_apart():
    judge, state = Judge(RunSection(patience=3), PARTS), new_state()
    state.best["waited"] = 2
    assert not judge.exhausted(state)
    state.best["waited"] = 3
    assert judge.exhausted(state)


@pytest.mark.parametrize("name", ["score", "label_patience"])
def test_labels_that_nobody_can_judge_are_refused(name):
    with pytest.raises(SettingsError, match=rf"run.{name} names stress.*forces, polarizability"):
        Judge(RunSection(**{name: {"stress": 1}}), PARTS)


@pytest.mark.parametrize(
    ("run", "found"),
    [
        ({"score": {"force": 1.0}}, "Did you mean 'forces'"),
        ({"score": {"forces": 0.0}}, "positive weight"),
        ({"score": {"forces": -1.0}}, "must not be -1"),
        ({"label_patience": {"forces": 0}}, "must not be 0"),
        ({"label_patience": {"polarisation": 3}}, "no loss of"),
    ],
)
def test_wrong_settings_are_explained(run, found):
    with pytest.raises(SettingsError, match=found):
        TrainingConfig.from_dict({"dataset": {"path": "x"}, "loss": {"terms": {"forces": {}}}, "run": run})


def test_the_digest_knows_what_chooses_the_weights_but_not_when_to_stop_or_how_to_divide():
    def digest(**run):
        return TrainingConfig.from_dict({"dataset": {"path": "x"}, "run": run}).digest

    base = digest()
    for same in (
        {"label_patience": {"polarizability": 3}},
        {"micro_structures": 2},
        {"micro_atoms": 20},
        {"micro_edges": 99},
        {"tensorboard": True},
        {"ranks_timeout": 5.0},
        {"batching": "homogeneous"},
        {"score": {}},
    ):
        assert digest(**same) == base, same
    for other in ({"score": {"polarizability": 2.0}}, {"batching": "mixed"}, {"average_from": 0}, {"average_from": 5}):
        assert digest(**other) != base, other
