"""The training loop: steps, evaluations, states.

Everything random depends on the seed and on counters (epoch, step), never on a running generator.  Together with
weights, moments, average and the position inside the epoch, which the state holds, a run that was killed at any
moment goes on to bitwise the same result as an uninterrupted one, on the same machine with the same number of
threads.  What depends on the clock (``run.max_minutes`` that is reached, ``optimizer.sized_by: minutes``) is exempt.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.errors import SettingsError, TrainingError
from fieldflows.training.chemistry import Sharing
from fieldflows.training.config import TrainingConfig
from fieldflows.training.data import Batch, make_batch
from fieldflows.training.ema import MovingAverage, copy_into
from fieldflows.training.evaluation import Interrupted, predict
from fieldflows.training.losses import displaced, random_directions
from fieldflows.training.metrics import evaluate_metrics, summary
from fieldflows.training.optimize import Schedule, make_optimizer, optimizer_tensors, restore_optimizer
from fieldflows.training.process import locked, stop_signals, threads_set_to
from fieldflows.training.response import directional_response, full_response
from fieldflows.training.result import Reporter, Status, TrainingResult
from fieldflows.training.sampler import BatchLimits, epoch_batches
from fieldflows.training.setup import Setup, load_dataset, prepare
from fieldflows.training.state import TrainingState, clear_states, load_state, save_state
from fieldflows.training.symmetry import describe

if TYPE_CHECKING:
    from fieldflows.datasets.dataset import Dataset

CONFIG_NAME = "config.yaml"
LOG_NAME = "log.jsonl"


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

    Args:
        config: The configuration.
        directory: The run directory.  If it holds the state of a run with the same configuration and dataset, that
            run goes on.
        dataset: The labeled frames; loaded or built as the configuration says by default.
        fresh: Forget an earlier run.
        figures: Draw learning curves and parity plots.
        reporter: Told about the progress.

    Raises:
        TrainingError: If the directory is in use, holds another run, or the loss is not finite.
        SettingsError: If a setting does not fit the data or the machine.
    """
    directory = Path(directory)
    reporter = reporter or Reporter()
    if config.run.device != "cpu" and not torch.cuda.is_available():
        raise SettingsError(f"run.device is {config.run.device!r}, but torch sees no GPU.", "Set run.device: cpu.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"Cannot use {directory} as run directory: {error.strerror}.") from error
    with locked(directory), threads_set_to(config.run.threads):
        data = dataset or load_dataset(config)
        if fresh:
            clear_states(directory)
        setup = prepare(config, {split: data.subset(split) for split in ("train", "valid", "test")})
        trainer = Trainer(config, directory, setup, data.digest, reporter)
        return trainer.run(figures)


class Trainer:
    """One run: holds what changes while it goes on.

    Args:
        config: The configuration.
        directory: The run directory, which nobody else uses.
        setup: Network, frames and loss.
        dataset_digest: Digest of the dataset.
        reporter: Told about the progress.
    """

    def __init__(
        self, config: TrainingConfig, directory: Path, setup: Setup, dataset_digest: str, reporter: Reporter
    ) -> None:
        self.config = config
        self.directory = directory
        self.setup = setup
        self.reporter = reporter
        self.network = setup.network
        self.evaluator = fastest(setup.network)
        self.parameters = setup.parameters
        self.optimizer = make_optimizer(self.parameters, config.optimizer)
        self.schedule = Schedule(config.optimizer)
        strength, similarity = config.optimizer.element_sharing, config.model.element_similarity
        self.sharing = Sharing(self.network, strength, similarity) if strength and similarity else None
        self.average = MovingAverage(self.parameters, config.run.ema_decay) if config.run.ema_decay else None
        run = config.run
        self.limits = BatchLimits(run.batch_structures, run.batch_atoms, run.batch_edges)
        self.costs = [frame.cost for frame in setup.frames["train"]]
        self.batches_per_epoch = len(epoch_batches(self.costs, self.limits, run.seed, 0))
        self.state = TrainingState(config.digest, dataset_digest, best={"score": math.inf, "epoch": None, "waited": 0})
        self.best: dict[str, torch.Tensor] = {}
        self.stop_requested = False
        self._resumed_at = 0.0
        self._started = 0.0

    # ---- the run -------------------------------------------------------------------------------------------------

    def run(self, figures: bool = True) -> TrainingResult:
        """Train until an end is reached, then write the report, with or without figures."""
        self._restore()
        self._write_config()
        symmetry = self.setup.symmetry()
        self._log_event("resume" if self.state.step else "start", step=self.state.step, symmetry=symmetry)
        for split, found in symmetry.items():
            self.reporter.message(f"{split}: {describe(found)}.")
        self._resumed_at, self._started = self.state.seconds, time.monotonic()
        self._saved_at = time.monotonic()
        with stop_signals(self._request_stop):
            self.reporter.start(self.setup, self.state, self.batches_per_epoch, self.config.run.epochs)
            try:
                status = self._epochs()
            except Interrupted:
                status = "interrupted"
            self._save()
            if status == "interrupted":
                self.reporter.message(f"Stopped at step {self.state.step}; the state is saved, resume to go on.")
                self._log_event("interrupted", step=self.state.step)
                return self._result(status)
        return self._finish(status, figures)

    def _epochs(self) -> Status:
        run, state = self.config.run, self.state
        while state.epoch < run.epochs:
            if run.patience is not None and state.best["waited"] >= run.patience:
                return "patience"
            batches = epoch_batches(self.costs, self.limits, run.seed, state.epoch)
            while state.batch < len(batches):
                if self.stop_requested:
                    return "interrupted"
                if run.max_minutes is not None and self._elapsed() >= 60 * run.max_minutes:
                    return "time"
                self._step(batches[state.batch], len(batches))
                due = time.monotonic() - self._saved_at >= run.checkpoint_seconds
                if due or (run.checkpoint_steps is not None and state.step % run.checkpoint_steps == 0):
                    self._save()
            self._end_epoch()
        return "epochs"

    def _step(self, indices: list[int], n_batches: int) -> None:
        run, state = self.config.run, self.state
        frames = [self.setup.frames["train"][i] for i in indices]
        batch = make_batch(frames, self.setup.labels, run.device)
        if run.position_noise > 0:
            batch = replace(batch, graph=displaced(batch.graph, run.position_noise, run.seed, state.step))
        rate = self.schedule.learning_rate(state.step, self._progress(n_batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self._loss(batch)
        if not torch.isfinite(loss):
            raise self._diverged(batch, "loss")
        loss.backward(inputs=list(self.parameters.values()))
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), self.config.optimizer.clip_norm or math.inf, error_if_nonfinite=False
        )
        if not torch.isfinite(norm):
            raise self._diverged(batch, "gradient")
        self.optimizer.step()
        if self.sharing is not None:
            self.sharing.apply(rate)
        state.step += 1
        state.batch += 1
        state.learning_rate = rate
        if self.average is not None:
            self.average.update(state.step)
        value = float(loss.detach())
        for key, part in {"loss": loss, **parts}.items():
            state.sums[key] = state.sums.get(key, 0.0) + float(part.detach())
            state.sums[f"{key}/count"] = state.sums.get(f"{key}/count", 0.0) + 1
        self._log_event("step", step=state.step, epoch=state.epoch, loss=value, rate=rate, gradient_norm=float(norm))
        self.reporter.step(state, value, rate)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        directions = None
        if self.config.loss.directions == "random":
            seed, like = self.config.run.seed, batch.graph["positions"]
            directions = random_directions(batch.n_graphs, seed, self.state.step, like)
            predictions = directional_response(self.evaluator, batch, directions)
        else:
            predictions = full_response(self.evaluator, batch, create_graph=True)
        return self.setup.loss(predictions, batch, directions)

    def _progress(self, n_batches: int) -> float:
        if self.config.optimizer.sized_by == "minutes":
            return self._elapsed() / (60 * float(self.config.run.max_minutes or math.inf))
        return (self.state.epoch + self.state.batch / max(n_batches, 1)) / self.config.run.epochs

    def _end_epoch(self) -> None:
        run, state = self.config.run, self.state
        last = state.epoch + 1 >= run.epochs
        if last or (state.epoch + 1) % run.eval_interval == 0:
            record = self._evaluate(float(state.epoch + 1))
            state.history.append(record)
            self.schedule.observe(record["score"])
            state.best["waited"] += 1
            if record["score"] < state.best["score"]:
                state.best = {"score": record["score"], "epoch": record["epoch"], "waited": 0}
                self.best = {k: v.detach().clone() for k, v in self._evaluated_weights().items()}
                self._export(unfinished=True)
        state.epoch += 1
        state.batch = 0
        state.sums = {}
        self._save()

    def _evaluate(self, epoch: float) -> dict[str, Any]:
        """Return the record of an evaluation of the (averaged) weights on the validation frames."""
        state = self.state
        means = {k: state.sums[k] / state.sums[f"{k}/count"] for k in state.sums if not k.endswith("/count")}
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": state.step,
            "seconds": round(self._elapsed(), 3),
            "learning_rate": state.learning_rate,
            "train": means,
            "valid": {},
            "metrics": {},
            "score": means.get("loss", math.inf),
        }
        frames = self.setup.frames["valid"]
        if frames:
            with self._averaged():
                predictions, parts = predict(
                    self.evaluator,
                    frames,
                    self.setup.labels,
                    self.limits,
                    self.setup.loss,
                    should_stop=lambda: self.stop_requested,
                )
            total = sum(parts.values())
            if not math.isfinite(total):
                raise TrainingError(
                    f"The loss on the validation frames is {total} after epoch {epoch:g}.",
                    "Lower optimizer.learning_rate; the last state is kept.",
                )
            record["valid"] = {"loss": total, **parts}
            record["metrics"] = evaluate_metrics(frames, predictions)
            record["score"] = total
        self._log_event("evaluation", **record)
        self.reporter.evaluation(record, summary(record["metrics"]))
        return record

    def _finish(self, status: Status, figures: bool) -> TrainingResult:
        """Put the best weights in, evaluate them on every split, and write checkpoint and report."""
        from fieldflows.training.report import write_report

        state = self.state
        if state.batch or not self.best:
            record = self._evaluate(state.epoch + state.batch / max(self.batches_per_epoch, 1))
            if record["score"] < state.best["score"] or not self.best:
                state.best = {"score": record["score"], "epoch": record["epoch"], "waited": 0}
                self.best = {k: v.detach().clone() for k, v in self._evaluated_weights().items()}
            if state.batch:
                state.history.append(record)
        copy_into(self.parameters, self.best)
        result = self._result(status)
        write_report(self.config, self.setup, self.limits, state, result, self.reporter.message, figures)
        self._log_event("end", status=status, step=state.step, checkpoint=result.sha256)
        return result

    def _request_stop(self) -> bool:
        first, self.stop_requested = not self.stop_requested, True
        return first

    # ---- weights -------------------------------------------------------------------------------------------------

    def _evaluated_weights(self) -> dict[str, torch.Tensor]:
        return self.average.average if self.average is not None else dict(self.parameters)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
        else:
            with self.average.applied():
                yield

    def _export(self, unfinished: bool) -> None:
        """Write the evaluated weights as a checkpoint that can be used while the run goes on."""
        from fieldflows.training.report import export_checkpoint

        with self._averaged():
            export_checkpoint(self.config, self.setup, self.state, self.directory, {}, unfinished=unfinished)

    # ---- state ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        state = load_state(self.directory)
        if state is None:
            (self.directory / LOG_NAME).unlink(missing_ok=True)
            return
        found = (state.config_digest, state.dataset_digest)
        if found != (self.state.config_digest, self.state.dataset_digest):
            what = "configuration" if found[0] != self.state.config_digest else "dataset"
            advice = "Resume with the settings of that run, choose another --out, or start again with --fresh."
            if found[0] == self.config.without_symmetry().digest:
                advice = "That run did not know run.symmetry, or had it off: set it to false to go on. " + advice
            raise TrainingError(
                f"{self.directory} holds a run with another {what} (see {self.directory / CONFIG_NAME}).", advice
            )
        self.state = state
        copy_into(self.parameters, state.part("model"))
        restore_optimizer(self.optimizer, self.parameters, state.part("optimizer"))
        if self.average is not None:
            self.average.average = {k: v.to(self.config.run.device) for k, v in state.part("average").items()}
        self.best = {k: v.to(self.config.run.device) for k, v in state.part("best").items()}
        self.schedule.restore(state.schedule)
        state.tensors = {}
        log = self.directory / LOG_NAME
        if log.exists() and log.stat().st_size > state.log_bytes:
            os.truncate(log, state.log_bytes)
        self.reporter.message(f"Going on at epoch {state.epoch}, step {state.step}.")

    def _save(self) -> None:
        state = self.state
        state.seconds = self._elapsed()
        state.schedule = self.schedule.state()
        log = self.directory / LOG_NAME
        state.log_bytes = log.stat().st_size if log.exists() else 0
        parts: dict[str, dict[str, torch.Tensor]] = {
            "model": dict(self.parameters),
            "average": self.average.average if self.average is not None else {},
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        state.tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
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

    def _write_config(self) -> None:
        path = self.directory / CONFIG_NAME
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(self.config.to_yaml(), encoding="utf-8")
        os.replace(temporary, path)

    def _log_event(self, event: str, **values: Any) -> None:
        with (self.directory / LOG_NAME).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, **values}) + "\n")

    def _diverged(self, batch: Batch, what: str) -> TrainingError:
        """Return the error that names the frames of a batch whose own loss or gradient is not finite."""
        culprits = []
        frames = {frame.name: frame for frame in self.setup.frames["train"]}
        for name in batch.names:
            self.optimizer.zero_grad(set_to_none=True)
            loss, _ = self._loss(make_batch([frames[name]], self.setup.labels, self.config.run.device))
            loss.backward(inputs=list(self.parameters.values()))
            norms = [p.grad.norm() for p in self.parameters.values() if p.grad is not None]
            if not torch.isfinite(loss) or not torch.isfinite(torch.stack(norms).norm()):
                culprits.append(name)
        self._log_event("diverged", step=self.state.step, frames=culprits or list(batch.names))
        return TrainingError(
            f"The {what} is not finite at step {self.state.step + 1}, epoch {self.state.epoch}: "
            f"{', '.join(culprits) or 'one of ' + ', '.join(batch.names)}.",
            f"Check these frames, or lower optimizer.learning_rate; the last good state is kept in {self.directory}.",
        )
