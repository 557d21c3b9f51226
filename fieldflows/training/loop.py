"""The training loop: steps, evaluations, states.

Everything random depends on the seed and on counters (epoch, step), never on a running generator.  Together with
weights, moments, average and the position inside the epoch, which the state holds, a run that was killed at any
moment goes on to bitwise the same result as an uninterrupted one, on the same machine with the same number of
threads and processes.  With another number of processes the result is the same to rounding.  What depends on the
clock (``run.max_minutes`` that is reached, ``optimizer.sized_by: minutes``) is exempt.
"""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.config import TrainingConfig
from fieldflows.training.distributed import Ranks, agree, compare_weights, joined
from fieldflows.training.evaluation import Interrupted
from fieldflows.training.groups import parameter_groups
from fieldflows.training.learner import Learner
from fieldflows.training.logs import LOG_NAME, RunLog, writing
from fieldflows.training.metrics import evaluate_metrics, summary
from fieldflows.training.process import locked, threads_set_to
from fieldflows.training.result import Reporter, Status, TrainingResult
from fieldflows.training.resume import CONFIG_NAME, check_state
from fieldflows.training.sampler import epoch_batches
from fieldflows.training.setup import SPLITS, Setup, load_dataset, prepare
from fieldflows.training.signals import stop_signals
from fieldflows.training.state import TrainingState, clear_states, deserialize, load_state, save_state, serialize
from fieldflows.training.step import Diverged, Stepper, effective_limits, memory_limits
from fieldflows.training.stopping import Judge
from fieldflows.training.symmetry import describe
from fieldflows.training.together import predict_together

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset
    from fieldflows.training.sources import HeadedDataset

__all__ = ["CONFIG_NAME", "LOG_NAME", "Trainer", "train"]

logger = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    directory: str | Path,
    *,
    dataset: Dataset | None = None,
    fresh: bool = False,
    figures: bool = True,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train a network and write checkpoint and report into a directory; goes on where an earlier run stopped.

    Started by torchrun, it trains together with the other processes; the first of them writes the files.

    Args:
        config: The configuration.
        directory: The run directory.  If it holds the state of a run with the same configuration and dataset, that
            run goes on.
        dataset: The labeled frames; loaded or built as the configuration says by default.
        fresh: Forget an earlier run.
        figures: Draw learning curves and parity plots.
        reporter: Told about the progress, by the first process.

    Raises:
        TrainingError: If the directory is in use, holds another run, or the loss is not finite; on all processes if
            on one.
        SettingsError: If a setting does not fit the data or the machine.
    """
    directory = Path(directory)
    if config.run.device != "cpu" and not torch.cuda.is_available():
        raise SettingsError(f"run.device is {config.run.device!r}, but torch sees no GPU.", "Set run.device: cpu.")
    with joined(config.run.device, config.run.ranks_timeout) as ranks, ranks.together(), ExitStack() as stack:
        if ranks.leader:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"Cannot use {directory} as run directory: {error.strerror}.") from error
            stack.enter_context(locked(directory))
        stack.enter_context(threads_set_to(config.run.threads))
        data = dataset or _load(config, directory, ranks)
        if fresh and ranks.leader:
            clear_states(directory)
        agree(ranks, {"dataset": data.digest, "configuration": config.digest})
        setup = prepare(config, {split: data.subset(split) for split in SPLITS})
        trainer = Trainer(config, directory, setup, data.digest, reporter or Reporter(), ranks)
        return trainer.run(figures)


def _load(config: TrainingConfig, directory: Path, ranks: Ranks) -> Dataset | HeadedDataset:
    """Return the dataset; where the labels of a replay are computed and kept, the first process does it for all."""
    alone = any(head.replay is not None for head in config.heads.values())
    if not alone:
        return load_dataset(config, directory)
    data = load_dataset(config, directory) if ranks.leader else None
    ranks.exchange()
    return data or load_dataset(config, directory)


class Trainer:
    """One run: holds what changes while it goes on.

    Args:
        config: The configuration.
        directory: The run directory, which nobody else uses.
        setup: Network, frames and loss.
        dataset_digest: Digest of the dataset.
        reporter: Told about the progress.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        config: TrainingConfig,
        directory: Path,
        setup: Setup,
        dataset_digest: str,
        reporter: Reporter,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.setup = setup
        self.ranks = ranks or Ranks()
        self.reporter = reporter if self.ranks.leader else Reporter()
        self.evaluator = fastest(setup.network)
        run = config.run
        groups = parameter_groups(setup.network, config)
        self.learner = Learner(config, setup, {name: group.factor for group in groups for name in group.params})
        tell = self.reporter.message if self.ranks.leader else logger.warning
        self.steps = Stepper(config, setup, self.evaluator, self.ranks, tell)
        self.limits = effective_limits(run)
        self.portions = self.limits.tightened(memory_limits(run))
        self.batches_per_epoch = len(self._batches(0))
        judged = setup.frames["valid"] or setup.frames["train"]
        self.judge = Judge(run, [key for key in setup.labels if any(key in frame.labels for frame in judged)])
        self.log = RunLog(directory, setup.labels, self.ranks.leader, run.tensorboard)
        self.state = TrainingState(config.digest, dataset_digest, best={"score": math.inf, "epoch": None, "waited": 0})
        self.stop_requested = False
        self._resumed_at = 0.0
        self._started = 0.0
        self._clock = 0.0

    # ---- the run -------------------------------------------------------------------------------------------------

    def run(self, figures: bool = True) -> TrainingResult:
        """Train until an end is reached, then write the report, with or without figures."""
        self._restore()
        symmetry = self.setup.symmetry()
        self._describe("resume" if self.state.step else "start", symmetry)
        self._resumed_at, self._started = self.state.seconds, time.monotonic()
        self._saved_at = time.monotonic()
        with stop_signals(self._request_stop, insist=self.ranks.size == 1):
            self.reporter.start(self.setup, self.state, self.batches_per_epoch, self.config.run.epochs)
            try:
                status = self._epochs()
            except Interrupted:
                status = "interrupted"
            self._save()
            if status == "interrupted":
                self.reporter.message(f"Stopped at step {self.state.step}; the state is saved, resume to go on.")
                self.log.event("interrupted", step=self.state.step)
                self.log.close()
                return self._result(status)
        return self._finish(status, figures)

    def _epochs(self) -> Status:
        run, state = self.config.run, self.state
        while state.epoch < run.epochs:
            if self.judge.exhausted(state):
                return "patience"
            batches = self._batches(state.epoch)
            while state.batch < len(batches):
                stop = self._meet()
                if stop is not None:
                    return stop
                self._step(batches[state.batch], len(batches))
                due = time.monotonic() - self._saved_at >= run.checkpoint_seconds
                if due or (run.checkpoint_steps is not None and state.step % run.checkpoint_steps == 0):
                    self._save()
            self._end_epoch()
        return "epochs"

    def _batches(self, epoch: int) -> list[list[int]]:
        run = self.config.run
        return epoch_batches(self.steps.costs, self.limits, run.seed, epoch, mixed=run.batching == "mixed")

    def _meet(self) -> Status | None:
        """Return why all processes end now; the clock is that of the first."""
        found = self.ranks.exchange([self.stop_requested, self._elapsed()])
        self._clock = float(found[0, 1])
        if found[:, 0].any():
            return "interrupted"
        limit = self.config.run.max_minutes
        return "time" if limit is not None and self._clock >= 60 * limit else None

    def _step(self, indices: list[int], n_batches: int) -> None:
        state = self.state
        rate = self.learner.schedule.learning_rate(state.step, self._progress(n_batches))
        try:
            found = self.steps.compute(self.steps.begin(indices, state.step))
        except Diverged as problem:
            raise self._diverged(problem) from None
        self.learner.learn(found.gradients, found.norm, rate, state)
        for key, value in {"loss": found.loss, **found.parts}.items():
            state.sums[key] = state.sums.get(key, 0.0) + value
            state.sums[f"{key}/count"] = state.sums.get(f"{key}/count", 0.0) + 1
        self.log.step(state.step, state.epoch, found.loss, rate, float(found.norm))
        self.reporter.step(state, found.loss, rate)

    def _progress(self, n_batches: int) -> float:
        if self.config.optimizer.sized_by == "minutes":
            return self._clock / (60 * float(self.config.run.max_minutes or math.inf))
        return (self.state.epoch + self.state.batch / max(n_batches, 1)) / self.config.run.epochs

    def _end_epoch(self) -> None:
        run, state = self.config.run, self.state
        last = state.epoch + 1 >= run.epochs
        if last or (state.epoch + 1) % run.eval_interval == 0:
            record = self._evaluate(float(state.epoch + 1))
            state.history.append(record)
            self.learner.schedule.observe(record["score"])
            self.judge.observe(record["valid"] or record["train"], state)
            state.best["waited"] += 1
            if record["score"] < state.best["score"]:
                state.best = {"score": record["score"], "epoch": record["epoch"], "waited": 0}
                self.learner.keep_best()
                self._export(unfinished=True)
        state.epoch += 1
        state.batch = 0
        state.sums = {}
        self._save()

    def _evaluate(self, epoch: float) -> dict[str, Any]:
        """Return the record of an evaluation of the (averaged) weights on the validation frames."""
        state = self.state
        compare_weights(self.ranks, list(self.setup.parameters.values()))
        means = {k: state.sums[k] / state.sums[f"{k}/count"] for k in state.sums if not k.endswith("/count")}
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": state.step,
            "seconds": round(self._elapsed(), 3),
            "learning_rate": state.learning_rate,
            "train": means,
            "valid": {},
            "metrics": {},
            "score": self.judge.score(means, means["loss"]) if means else math.inf,
        }
        frames, labels, loss = self.setup.frames["valid"], self.setup.labels, self.setup.loss
        if frames:
            with self.learner.averaged():
                predictions, parts = predict_together(
                    self.ranks, self.evaluator, frames, labels, self.portions, loss, lambda: self.stop_requested
                )
            total = sum(parts.values())
            if not math.isfinite(total):
                raise TrainingError(
                    f"The loss on the validation frames is {total} after epoch {epoch:g}.",
                    "Lower optimizer.learning_rate; the last state is kept.",
                )
            record["valid"] = {"loss": total, **parts}
            record["metrics"] = evaluate_metrics(frames, predictions)
            record["score"] = self.judge.score(parts, total)
        self.log.evaluation(record)
        self.reporter.evaluation(record, summary(record["metrics"]))
        return record

    def _finish(self, status: Status, figures: bool) -> TrainingResult:
        """Put the best weights in, evaluate them on every split, and write checkpoint and report."""
        from fieldflows.training.report import write_report

        state, setup = self.state, self.setup
        self.stop_requested = False
        if state.batch or not self.learner.best:
            record = self._evaluate(state.epoch + state.batch / max(self.batches_per_epoch, 1))
            if record["score"] < state.best["score"] or not self.learner.best:
                state.best = {"score": record["score"], "epoch": record["epoch"], "waited": 0}
                self.learner.keep_best()
            if state.batch:
                state.history.append(record)
        self.learner.use_best()
        result = self._result(status)
        predictions = {
            split: predict_together(self.ranks, self.evaluator, frames, setup.labels, self.portions)[0]
            for split, frames in setup.frames.items()
            if frames
        }
        self.ranks.release()
        if self.ranks.leader:
            with writing(self.directory):
                write_report(
                    self.config, setup, self.portions, state, result, self.reporter.message, figures, predictions
                )
            self.log.event("end", status=status, step=state.step, checkpoint=result.sha256)
            self.log.remark(f"ended by: {status}; best at epoch {state.best['epoch']:g}")
        self.log.close()
        return result

    def _request_stop(self) -> bool:
        first, self.stop_requested = not self.stop_requested, True
        return first

    # ---- state ---------------------------------------------------------------------------------------------------

    def _export(self, unfinished: bool) -> None:
        """Write the evaluated weights as a checkpoint that can be used while the run goes on."""
        from fieldflows.training.report import export_checkpoint

        if self.ranks.leader:
            with self.learner.averaged():
                export_checkpoint(self.config, self.setup, self.state, self.directory, {}, unfinished=unfinished)

    def _restore(self) -> None:
        """Put the state of an earlier run in, and the weights of the first process on all."""
        state = load_state(self.directory) if self.ranks.leader else None
        data = serialize(state) if state is not None and self.ranks.size > 1 else b""
        self.ranks.exchange()
        data = self.ranks.share(data)
        self.ranks.share_tensors(list(self.setup.network.parameters()))
        if not self.ranks.leader and data:
            state = deserialize(data)
        if state is not None:
            check_state(state, self.config, self.state.dataset_digest, self.directory, self.learner.parameters)
            self.state = state
            self.learner.adopt(state, self.config.run.device)
            self.reporter.message(f"Going on at epoch {state.epoch}, step {state.step}.")
        self.log.begin(self.state.step, self.state.log_bytes, self.state.history)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if not self.ranks.leader:
            return
        state = self.state
        state.seconds = self._elapsed()
        state.log_bytes = self.log.size
        self.learner.fill(state)
        save_state(self.directory, state)
        state.tensors = {}
        self._saved_at = time.monotonic()

    def _elapsed(self) -> float:
        return self._resumed_at + time.monotonic() - self._started

    def _result(self, status: Status) -> TrainingResult:
        from fieldflows.models import CHECKPOINT_NAME

        path = self.directory / CHECKPOINT_NAME
        return TrainingResult(
            status=status,
            directory=self.directory,
            checkpoint=path if path.exists() else None,
            sha256=None,
            best=dict(self.state.best),
            history=list(self.state.history),
            seconds=self._elapsed(),
            steps=self.state.step,
            epochs=self.state.epoch,
        )

    # ---- surroundings --------------------------------------------------------------------------------------------

    def _describe(self, event: str, symmetry: dict[str, dict[str, Any]]) -> None:
        """Write down what starts: the configuration, the processes, and what became of the frames."""
        if self.ranks.leader:
            path = self.directory / CONFIG_NAME
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with writing(path):
                temporary.write_text(self.config.to_yaml(), encoding="utf-8")
                os.replace(temporary, path)
        notes = self.setup.notes()
        self.log.event(event, step=self.state.step, symmetry=symmetry, processes=self.ranks.size, notes=notes)
        for line in notes:
            self.reporter.message(f"{line}.")
        for split, found in symmetry.items():
            self.reporter.message(f"{split}: {describe(found)}.")

    def _diverged(self, problem: Diverged) -> TrainingError:
        """Return the error that names the frames of a batch whose own loss or gradient is not finite."""
        state = self.state
        self.log.event("diverged", step=state.step, frames=problem.frames or problem.members)
        return TrainingError(
            f"The {problem.what} is not finite at step {state.step + 1}, epoch {state.epoch}: "
            f"{', '.join(problem.frames) or 'one of ' + ', '.join(problem.members)}.",
            f"Check these frames, or lower optimizer.learning_rate; the last good state is kept in {self.directory}.",
        )
