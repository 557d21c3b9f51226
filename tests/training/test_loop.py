import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fieldflows.backends.mace_field.derivatives import respond
from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.loop import train as train_with_figures
from fieldflows.training.result import Reporter
from tests.training.crystals import ALL_TERMS, small_dataset, symmetric_dataset, tiny_config

ELECTRONIC = ("born_effective_charges", "polarizability")


def train(*arguments, **options):
    """Train without figures, which take as long as all the rest here."""
    return train_with_figures(*arguments, **{"figures": False, **options})


class Crash(BaseException):
    """Stands for a process that is gone: nothing of ours may catch it."""


class CrashAt(Reporter):
    def __init__(self, step=None, evaluation=None):
        self.at_step, self.at_evaluation = step, evaluation
        self.steps = []

    def step(self, state, loss, learning_rate):
        self.steps.append(state.step)
        if state.step == self.at_step:
            raise Crash

    def evaluation(self, record, text):
        if record["epoch"] == self.at_evaluation:
            raise Crash


@pytest.fixture(scope="module")
def dataset():
    return small_dataset(7, 2, 0, names=ELECTRONIC)


def timeless(value):
    """Drop wall times, the only thing in which two equal runs differ."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "checkpoint_sha256", "checkpoint")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(directory: Path):
    """Return weights bit by bit, metrics, and the log without the lines that tell of restarts."""
    weights = {k: v.numpy().tobytes() for k, v in load_file(directory / "model.safetensors").items()}
    metrics = timeless(json.loads((directory / "metrics.json").read_text()))
    log = [timeless(json.loads(line)) for line in (directory / "log.jsonl").read_text().splitlines()]
    return weights, metrics, [line for line in log if line["event"] not in ("start", "resume", "interrupted")]


VARIANTS = {
    "cosine": {},
    "plateau": {
        "optimizer": {
            "schedule": "plateau",
            "plateau_patience": 1,
            "kind": "adam",
            "clip_norm": None,
            "element_sharing": 0.5,
        },
        "model": {**tiny_config().model.model_dump(), "element_similarity": 1.0},
        "run": {"ema_decay": None, "dtype": "float32", "position_noise": 0.02},
        "loss": {"directions": "random", "terms": {key: {"kind": "mse"} for key in ELECTRONIC}},
    },
}


def variant(name, **run):
    settings = dict(VARIANTS[name])
    settings["run"] = {"epochs": 3, "checkpoint_steps": 2, **settings.get("run", {}), **run}
    return tiny_config(**settings)


@pytest.fixture(scope="module", params=list(VARIANTS))
def uninterrupted(request, dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    result = train(variant(request.param), directory, dataset=dataset)
    return request.param, directory, result


ON_COSINE = pytest.mark.parametrize("uninterrupted", ["cosine"], indirect=True)


def test_a_run_writes_everything(uninterrupted):
    _, directory, result = uninterrupted
    assert (result.status, result.epochs, result.steps) == ("epochs", 3, 9)
    written = {path.name for path in directory.iterdir()}
    assert written >= {
        "config.yaml", "log.jsonl", "metrics.json", "model.safetensors", "README.md", "state.safetensors"
    }  # fmt: skip
    assert not [name for name in written if name.endswith(".tmp")]
    assert [record["epoch"] for record in result.history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("uninterrupted", "crash"),
    [
        ("cosine", {"step": 1}),
        ("cosine", {"evaluation": 1}),
        ("cosine", {"evaluation": 3}),
        ("plateau", {"step": 5}),
    ],
    indirect=["uninterrupted"],
    ids=lambda value: str(value),
)
def test_a_crashed_run_goes_on_to_bitwise_the_same_result(uninterrupted, dataset, tmp_path, crash):
    name, reference, _ = uninterrupted
    with pytest.raises(Crash):
        train(variant(name), tmp_path, dataset=dataset, reporter=CrashAt(**crash))
    reporter = CrashAt()
    result = train(variant(name), tmp_path, dataset=dataset, reporter=reporter)
    assert result.status == "epochs"
    first = {1: 1, 5: 5}.get(crash.get("step", 0), {1: 3, 3: 9}.get(crash.get("evaluation", 0)))
    assert reporter.steps[0] == first
    assert outcome(tmp_path) == outcome(reference)


@ON_COSINE
def test_a_damaged_state_falls_back_to_the_one_before(uninterrupted, dataset, tmp_path):
    name, reference, _ = uninterrupted
    with pytest.raises(Crash):
        train(variant(name), tmp_path, dataset=dataset, reporter=CrashAt(step=7))
    newest = tmp_path / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-40] ^= 1
    newest.write_bytes(bytes(data))
    train(variant(name), tmp_path, dataset=dataset)
    assert outcome(tmp_path) == outcome(reference)


@ON_COSINE
def test_resuming_a_finished_run_changes_nothing(uninterrupted, dataset):
    name, directory, first = uninterrupted
    before = outcome(directory)
    again = train(variant(name), directory, dataset=dataset)
    assert again.steps == first.steps
    weights, metrics, _ = outcome(directory)
    assert (weights, metrics) == before[:2]


@ON_COSINE
def test_another_seed_gives_another_model(dataset, tmp_path, uninterrupted):
    name, reference, _ = uninterrupted
    train(variant(name, seed=4), tmp_path, dataset=dataset)
    assert outcome(tmp_path)[0] != outcome(reference)[0]


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from fieldflows.training.result import Reporter
from tests.training.crystals import small_dataset
from tests.training.test_loop import ELECTRONIC, train, variant

class Slow(Reporter):
    def step(self, state, loss, learning_rate):
        sys.stdout.write(f"{state.step}\\n")
        sys.stdout.flush()
        if state.step == int(sys.argv[3]):
            end = time.monotonic() + 60
            while time.monotonic() < end and not (Path(sys.argv[1]) / "signal was sent").exists():
                time.sleep(0.05)

    def message(self, text):
        sys.stdout.write(text + "\\n")

result = train(variant("cosine"), sys.argv[1], dataset=small_dataset(7, 2, 0, names=ELECTRONIC), reporter=Slow())
sys.stdout.write(f"status {result.status}\\n")
"""


def start(directory: Path, sleep_at: int) -> subprocess.Popen:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), str(directory), root, str(sleep_at)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@ON_COSINE
def test_kill_9_then_sigterm_then_the_same_result(uninterrupted, dataset, tmp_path):
    _, reference, _ = uninterrupted
    process = start(tmp_path, sleep_at=5)
    for line in process.stdout:
        if line.strip() == "5":
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL

    process = start(tmp_path, sleep_at=7)
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip() == "7":
            with pytest.raises(TrainingError, match="Another process"):
                train(variant("cosine"), tmp_path, dataset=dataset)
            os.kill(process.pid, signal.SIGTERM)
            (tmp_path / "signal was sent").touch()
    assert process.wait(timeout=120) == 0
    assert lines[0].startswith("Going on at epoch 1, step 4")
    assert lines[-1] == "status interrupted"
    assert "7" in lines
    assert "8" not in lines

    result = train(variant("cosine"), tmp_path, dataset=dataset)
    assert result.status == "epochs"
    assert outcome(tmp_path) == outcome(reference)


def test_a_student_learns_its_teacher(tmp_path):
    data = small_dataset(6, 2, 0)
    config = tiny_config(
        run={"epochs": 48, "batch_structures": 6, "eval_interval": 8, "checkpoint_seconds": 1000},
        optimizer={"learning_rate": 0.05},
        loss={"terms": ALL_TERMS},
    )
    result = train(config, tmp_path, dataset=data)
    first, last = result.history[0], result.history[-1]
    assert last["train"]["loss"] < 0.6 * first["train"]["loss"]
    for name in ("forces", "polarization", "born_charge_diagonal"):
        assert last["metrics"][name]["mae"] < 0.7 * first["metrics"][name]["mae"], name
    assert result.metrics["train"]["forces"]["r2"] > 0.5


@ON_COSINE
def test_fresh_forgets_the_earlier_run(uninterrupted, dataset, tmp_path):
    name, reference, _ = uninterrupted
    with pytest.raises(Crash):
        train(variant(name, seed=9), tmp_path, dataset=dataset, reporter=CrashAt(step=5))
    with pytest.raises(TrainingError, match=r"another configuration.*--fresh"):
        train(variant(name), tmp_path, dataset=dataset)
    train(variant(name), tmp_path, dataset=dataset, fresh=True)
    assert outcome(tmp_path) == outcome(reference)


def test_another_dataset_is_refused(dataset, tmp_path):
    with pytest.raises(Crash):
        train(variant("cosine"), tmp_path, dataset=dataset, reporter=CrashAt(step=3))
    with pytest.raises(TrainingError, match="another dataset"):
        train(variant("cosine"), tmp_path, dataset=small_dataset(6, 2, 0, names=ELECTRONIC))


@pytest.mark.parametrize(("size", "what"), [(1e200, "loss"), (1e30, "(loss|gradient)")])
def test_what_is_not_finite_names_the_frame_and_keeps_the_state(dataset, tmp_path, size, what):
    frames = list(dataset.frames)
    broken = frames[3]
    huge = np.full_like(broken.labels["polarizability"], size)
    frames[3] = broken.with_(labels={**broken.labels, "polarizability": huge})
    spoiled = type(dataset)(frames)
    config = tiny_config(
        model={"element_polarizability": False},
        run={"dtype": "float32", "epochs": 2, "batch_structures": 1, "checkpoint_steps": 1},
        loss={"terms": {"polarizability": {"kind": "mse"}}},
    )
    with pytest.raises(TrainingError, match=rf"{what} is not finite.*: MgS \(teacher:3\)"):
        train(config, tmp_path, dataset=spoiled)
    from fieldflows.training.state import load_state

    state = load_state(tmp_path)
    if state is not None:
        assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["frames"] == ["MgS (teacher:3)"]


def test_max_minutes_ends_in_order_and_more_minutes_go_on(dataset, tmp_path):
    result = train(variant("cosine", max_minutes=1e-6), tmp_path, dataset=dataset)
    assert (result.status, result.steps) == ("time", 0)
    assert result.checkpoint.is_file()
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "time"
    result = train(variant("cosine"), tmp_path, dataset=dataset)
    assert (result.status, result.steps) == ("epochs", 9)


def test_runs_on_symmetric_frames_resume_bitwise_and_say_what_was_moved(tmp_path):
    data = symmetric_dataset(ELECTRONIC)
    config = tiny_config(run={"epochs": 2, "checkpoint_steps": 1, "batch_structures": 2})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = train(config, whole, dataset=data)
    # by number of directions: 4 frames in two batches, 2 in one, 2 in one
    assert result.steps == 8
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["symmetry"]["train"]["directions"] == {"1": 4, "2": 2, "3": 2}
    assert metrics["symmetry"]["valid"]["directions"] == {"1": 2, "2": 1, "3": 1}
    assert 1e-6 < metrics["symmetry"]["train"]["moved_max"] < 5e-5
    start = json.loads((whole / "log.jsonl").read_text().splitlines()[0])
    assert start["symmetry"] == metrics["symmetry"]
    assert "4 need one field direction" in (whole / "README.md").read_text()

    with pytest.raises(Crash):
        train(config, broken, dataset=data, reporter=CrashAt(step=3))
    train(config, broken, dataset=data)
    assert outcome(broken) == outcome(whole)


def test_going_on_with_a_run_without_symmetry_is_explained(tmp_path):
    """As with a run that was begun before the option existed: its state has the digest of the option off."""
    data = symmetric_dataset(ELECTRONIC)
    without = tiny_config(run={"epochs": 1, "symmetry": False, "checkpoint_steps": 1})
    with pytest.raises(Crash):
        train(without, tmp_path, dataset=data, reporter=CrashAt(step=2))
    with pytest.raises(TrainingError, match=r"another configuration.*run\.symmetry.*set it to false"):
        train(tiny_config(run={"epochs": 1}), tmp_path, dataset=data)
    assert train(without, tmp_path, dataset=data).status == "epochs"
    assert json.loads((tmp_path / "metrics.json").read_text())["symmetry"] == {}


def test_the_course_of_the_loss_does_not_depend_on_the_reduction(tmp_path, monkeypatch):
    """The same frames in the same batches, completed from few directions or taken along three."""
    data = symmetric_dataset()
    config = tiny_config(run={"epochs": 1, "ema_decay": None}, loss={"terms": ALL_TERMS})
    reduced = train(config, tmp_path / "reduced", dataset=data)
    used = []

    def along_axes(network, batch, create_graph=False):
        used.append(batch.reduction)
        return respond(network, batch.graph, tuple(batch.targets), create_graph=create_graph)

    monkeypatch.setattr("fieldflows.training.step.full_response", along_axes)
    full = train(config, tmp_path / "full", dataset=data)
    assert any(reduction is not None for reduction in used)
    for mine, theirs in zip(reduced.history, full.history, strict=True):
        assert mine["train"] == pytest.approx(theirs["train"], rel=1e-7)
        assert mine["valid"] == pytest.approx(theirs["valid"], rel=1e-7)


def test_patience_stops_a_run_that_does_not_improve(dataset, tmp_path):
    """With a step so large that the weights are thrown away, the first evaluation stays the best."""
    config = tiny_config(
        run={"epochs": 12, "patience": 2, "ema_decay": None},
        optimizer={"learning_rate": 3.0, "schedule": "constant", "warm_up_steps": 6},
    )
    result = train(config, tmp_path, dataset=dataset)
    assert result.status == "patience"
    assert result.best["waited"] == 2
    assert result.epochs == result.best["epoch"] + 2 < 12


def test_only_labels_that_frames_have_are_trained(dataset, tmp_path):
    config = tiny_config(run={"epochs": 1}, loss={"terms": ALL_TERMS | {"polarization": {}, "energy": {}}})
    result = train(config, tmp_path, dataset=dataset)
    from fieldflows.backends.mace_field.checkpoint import read_metadata

    metadata = read_metadata(result.checkpoint)
    assert metadata.trained_labels == ELECTRONIC
    assert metadata.provenance["dataset_digest"] == dataset.digest
    assert set(result.metrics["valid"]) >= {"born_charge_diagonal", "refractive_index"}
    assert "forces" not in result.metrics["valid"]


def test_nothing_to_train_on(dataset, tmp_path):
    config = tiny_config(loss={"terms": {"forces": {}}})
    with pytest.raises(TrainingError, match="None of the 7 training frames"):
        train(config, tmp_path, dataset=dataset)


def test_no_gpu_is_said_at_once(dataset, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match="sees no GPU"):
        train(tiny_config(run={"device": "cuda"}), tmp_path, dataset=dataset)


def test_a_run_directory_that_cannot_be_made(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="Cannot use"):
        train(tiny_config(), tmp_path / "file" / "run", dataset=dataset)


@ON_COSINE
def test_settings_of_the_process_are_left_as_they_were(uninterrupted, dataset, tmp_path):
    before = (torch.get_num_threads(), signal.getsignal(signal.SIGTERM), torch.get_default_dtype())
    train(tiny_config(run={"epochs": 1}), tmp_path, dataset=dataset)
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGTERM), torch.get_default_dtype()) == before


def test_runs_in_a_thread(dataset, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(tiny_config(run={"epochs": 1}), tmp_path, dataset=dataset).status)
    )
    thread.start()
    thread.join()
    assert results == ["epochs"]
    assert multiprocessing.active_children() == []
