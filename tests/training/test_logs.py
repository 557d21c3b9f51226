import json
import sys

import pytest

from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.logs import RunLog, summary_writer, tensorboard_scalars

LABELS = ("forces", "polarization", "born_effective_charges")


def record(epoch, step):
    return {
        "epoch": float(epoch),
        "step": step,
        "seconds": 90.0 * epoch,
        "learning_rate": 0.005,
        "train": {"loss": 0.5, "forces": 0.5},
        "valid": {"loss": 0.25, "forces": 0.25},
        "metrics": {
            "forces": {"unit": "meV/Å", "mae": 12.3456, "rmse": 20.0, "r2": 0.9, "count": 6},
            "polarization": {"unit": "µC/cm²", "mae": 0.7, "rmse": 0.8, "r2": None, "count": 3},
        },
        "score": 0.25,
    }


def test_the_table_has_units_and_a_line_per_evaluation(tmp_path):
    log = RunLog(tmp_path, LABELS)
    log.begin(0, 0, [])
    log.evaluation(record(1, 10))
    log.remark("ended by: epochs")
    lines = (tmp_path / "training.log").read_text().splitlines()
    names, units, row, end = lines[1:]
    assert names.split()[:7] == ["#", "epoch", "step", "time", "rate", "train", "valid"]
    for name, unit, value in (("F", "meV/Å", "12.35"), ("P", "µC/cm²", "0.7")):
        stop = names.index(f" {name} ") + 2
        # columns are flush right
        assert units[:stop].endswith(unit)
        assert row[:stop].endswith(value)
    assert row.split() == ["1", "10", "1.50", "5.00e-03", "0.5", "0.25", "12.35", "0.7", "-", "-"]
    assert end == "# ended by: epochs"


def test_logs_are_brought_back_to_the_state_of_a_run(tmp_path):
    log = RunLog(tmp_path, LABELS)
    log.begin(0, 0, [])
    log.event("start")
    log.evaluation(record(1, 10))
    kept = log.size
    log.evaluation(record(2, 20))
    again = RunLog(tmp_path, LABELS)
    again.begin(10, kept, [record(1, 10)])
    again.evaluation(record(2, 21))
    steps = [json.loads(line).get("step") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [None, 10, 21]
    rows = [line.split()[1] for line in (tmp_path / "training.log").read_text().splitlines() if line[0] != "#"]
    assert rows == ["10", "21"]
    RunLog(tmp_path, LABELS).begin(0, 0, [])
    assert not (tmp_path / "log.jsonl").exists()


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(tmp_path, LABELS, active=False)
    log.begin(0, 0, [])
    log.event("start")
    log.step(1, 0, 0.5, 0.1, 2.0)
    log.evaluation(record(1, 10))
    log.remark("end")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert log.size == 0


@pytest.mark.parametrize("name", ["log.jsonl", "training.log"])
def test_a_full_disk_is_explained(tmp_path, name):
    log = RunLog(tmp_path, LABELS)
    log.begin(0, 0, [])
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=rf"Cannot write .*{name}: No space left on device.*last state"):
        log.evaluation(record(1, 10))


def test_tags_of_tensorboard_have_units():
    scalars = tensorboard_scalars(record(1, 10))
    assert scalars["validation MAE/F (meV/Å)"] == 12.3456
    assert scalars["validation RMSE/P (µC/cm²)"] == 0.8
    assert scalars["loss/train"] == 0.5
    assert scalars["loss/valid forces"] == 0.25


def test_what_is_handed_to_tensorboard(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    monkeypatch.setattr("fieldflows.training.logs.summary_writer", lambda: Writer)
    log = RunLog(tmp_path, LABELS, tensorboard=True)
    log.begin(7, 0, [])
    log.step(8, 0, 0.5, 0.1, 2.0)
    log.evaluation(record(1, 8))
    log.close()
    # what came after the state is hidden
    assert written[0] == (str(tmp_path / "tensorboard"), 8)
    assert ("loss/train step", 0.5, 8) in written
    assert ("validation MAE/F (meV/Å)", 12.3456, 8) in written
    assert written[-1] == "closed"


def test_without_tensorboard_the_setting_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match=r"fieldflows\[tensorboard\]"):
        RunLog(tmp_path, LABELS, tensorboard=True)


def test_tensorboard_reads_what_was_written(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs fieldflows[tensorboard]"
    )
    assert summary_writer() is not None
    log = RunLog(tmp_path, LABELS, tensorboard=True)
    log.begin(0, 0, [])
    log.step(1, 0, 0.5, 0.1, 2.0)
    log.evaluation(record(1, 1))
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("validation MAE/F (meV/Å)")[0].value == pytest.approx(12.3456)
    assert events.Scalars("loss/train step")[0].step == 1
