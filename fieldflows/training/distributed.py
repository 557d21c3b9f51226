"""Several processes that train together: what they say to each other, and how they end together.

Every process ("rank") holds all frames and the same weights.  It computes its share of each effective batch; what is
added up over the ranks are numerators, normalizations and gradients, so that a step is that of one process that
computes everything.  The gradient is a plain sum of flattened tensors, made once per step: wrappers that hook into the
backward pass reduce it too often here, because a step takes derivatives of derivatives and may accumulate parts.

Ranks go through the same sequence of meetings (:meth:`Ranks.exchange`).  Other transfers directly follow one, with
nothing in between that can fail.  A rank that fails says so in its next meeting, and all others end there with its
message.  One that is gone is noticed by the others because the connection breaks, or after a time limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fieldflows.errors import SettingsError, TrainingError

WIDTH = 64
"""Numbers that a rank can tell in one meeting."""
_TEXT = 1024


class Ranks:
    """One process alone; the interface of :class:`SeveralRanks`, where nothing has to be said.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank = 0
    size = 1

    @property
    def leader(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def exchange(self, values: Sequence[float] = ()) -> np.ndarray:
        """Tell some numbers and return those of all ranks, shape (size, len(values)).

        Raises:
            TrainingError: If another rank has failed or does not answer.
        """
        return np.array([values], dtype=float).reshape(1, len(values))

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over the ranks; to be called directly after :meth:`exchange`."""

    def share(self, data: bytes) -> bytes:
        """Return the bytes that the leader has; to be called directly after :meth:`exchange`."""
        return data

    def share_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with those of the leader; to be called directly after :meth:`exchange`."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others if the block fails on this rank."""
        yield

    def release(self) -> None:
        """Need the others no more."""


class SeveralRanks(Ranks):
    """This process as one of several.  Made by :func:`joined`.

    Args:
        timeout: Longest wait for another rank in s, for messages.
    """

    def __init__(self, timeout: float) -> None:
        self.rank, self.size, self.timeout = dist.get_rank(), dist.get_world_size(), timeout
        self.ended = False

    def exchange(self, values: Sequence[float] = ()) -> np.ndarray:
        """Tell some numbers and return those of all ranks."""
        found = self._meet(values, failed=False)
        failed = np.flatnonzero(found[:, 0])
        if len(failed):
            self.ended = True
            text = self._texts("")[int(failed[0])]
            raise TrainingError(f"Process {failed[0]} of {self.size} has ended: {text}")
        return found[:, 1 : 1 + len(values)]

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over the ranks."""
        self._transfer(lambda: dist.all_reduce(tensor))

    def share(self, data: bytes) -> bytes:
        """Return the bytes that the leader has."""
        length = torch.tensor([len(data)])
        self._transfer(lambda: dist.broadcast(length, 0))
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.leader and data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if len(buffer):
            self._transfer(lambda: dist.broadcast(buffer, 0))
        return buffer.numpy().tobytes()

    def share_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with those of the leader."""
        for tensor in tensors:
            held = tensor.detach().contiguous()
            self._transfer(lambda held=held: dist.broadcast(held, 0))  # type: ignore[misc]
            with torch.no_grad():
                tensor.copy_(held)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others if the block fails on this rank."""
        try:
            yield
        except Exception as error:
            if not self.ended:
                self.ended = True
                # whoever has gone as well does not have to be told
                with suppress(Exception):
                    self._meet((), failed=True)
                    self._texts(f"{error}" if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}")
            raise

    def release(self) -> None:
        """Need the others no more."""
        self.ended = True

    def _meet(self, values: Sequence[float], failed: bool) -> np.ndarray:
        if len(values) >= WIDTH:
            raise ValueError(f"{len(values)} numbers do not fit into a meeting")
        mine = torch.zeros(WIDTH, dtype=torch.float64)
        mine[0] = float(failed)
        mine[1 : 1 + len(values)] = torch.tensor([float(value) for value in values], dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._transfer(lambda: dist.all_gather(found, mine))
        return torch.stack(found).numpy()

    def _texts(self, text: str) -> list[str]:
        mine = torch.zeros(_TEXT, dtype=torch.uint8)
        data = text.encode()[:_TEXT]
        if data:
            mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._transfer(lambda: dist.all_gather(found, mine))
        return [bytes(item.tolist()).rstrip(b"\0").decode(errors="ignore") for item in found]

    def _transfer(self, action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            self.ended = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". This is")[0]
            raise TrainingError(
                f"Process {self.rank} of {self.size} has lost the others, or one did not answer within "
                f"{self.timeout:g} s ({reason}).",
                "See what the others say; then run the same command again: it goes on from the last state.",
            ) from error


def environment_size(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Return number of this process and number of processes, as torchrun tells them; (0, 1) without it.

    Raises:
        SettingsError: If the variables contradict each other.
    """
    variables = os.environ if environment is None else environment
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return 0, 1
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise SettingsError(
            f"RANK={variables['RANK']} and WORLD_SIZE={variables['WORLD_SIZE']} make no sense.",
            "Start several processes with torchrun, or unset both.",
        )
    return rank, size


@contextmanager
def joined(device: str, timeout: float) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, inside the block; alone where it has not.

    With CUDA each process takes the GPU of its local number and NCCL carries the gradients; gloo carries the rest.  A
    process group that exists is used and left as it is.

    Args:
        device: ``run.device``.
        timeout: Longest wait for another rank in s.

    Raises:
        SettingsError: If there is no GPU for this process.
        TrainingError: If the others are not found.
    """
    exists = dist.is_available() and dist.is_initialized()
    if not exists and environment_size()[1] == 1:
        yield Ranks()
        return
    if device.startswith("cuda"):
        _take_gpu()
    if not exists:
        _connect(device, timeout)
    try:
        yield SeveralRanks(timeout)
    finally:
        if not exists:
            dist.destroy_process_group()


def _connect(device: str, timeout: float) -> None:
    if not dist.is_available():
        raise SettingsError("This build of torch has no torch.distributed.", "Start one process only.")
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"The processes do not find each other: {str(error).splitlines()[0]}.",
            "Start them with torchrun; on several nodes all need the same --rdzv-endpoint.",
        ) from error


def _take_gpu() -> None:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if local >= count:
        raise SettingsError(
            f"Process {local} of this machine needs a GPU of its own, but torch sees {count}.",
            "Start as many processes as there are GPUs: torchrun --nproc-per-node N.",
        )
    torch.cuda.set_device(local)


def flat_sum(ranks: Ranks, gradients: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> list[Any]:
    """Return the sums of gradients over the ranks; None stays where no rank has one.

    One transfer: all gradients in one tensor, with one number for each that counts the ranks that have it.

    Args:
        ranks: The processes.
        gradients: Those of this rank.
        like: The parameters.
    """
    if ranks.size == 1:
        return list(gradients)
    pieces = [
        torch.zeros_like(p).view(-1) if g is None else g.reshape(-1) for p, g in zip(like, gradients, strict=True)
    ]
    used = torch.tensor([float(g is not None) for g in gradients], dtype=pieces[0].dtype, device=pieces[0].device)
    flat = torch.cat([*pieces, used])
    ranks.add(flat)
    counts = flat[-len(gradients) :].tolist()
    parts = flat[: -len(gradients)].split([piece.numel() for piece in pieces])
    return [part.view_as(p) if count else None for part, p, count in zip(parts, like, counts, strict=True)]


def agree(ranks: Ranks, digests: Mapping[str, str]) -> None:
    """Raise an error unless all processes have the same data and settings.

    Args:
        ranks: The processes.
        digests: What it is to its digest.
    """
    numbers = [float(int(hashlib.sha256(digest.encode()).hexdigest()[:12], 16)) for digest in digests.values()]
    found = ranks.exchange(numbers)
    for what, column in zip(digests, found.T, strict=True):
        if len(set(column)) > 1:
            raise TrainingError(f"The processes were given another {what} each.", "Start all with the same command.")


def compare_weights(ranks: Ranks, weights: Sequence[torch.Tensor]) -> None:
    """Raise an error if the weights of the processes are no longer the same, beyond rounding."""
    if ranks.size == 1:
        return
    with torch.no_grad():
        total = torch.stack([weight.double().abs().sum() for weight in weights]).sum()
    found = ranks.exchange([float(total)])[:, 0]
    if not abs(found - found[0]).max() <= 1e-5 * abs(found[0]):
        raise TrainingError(
            "The weights of the processes have drifted apart.",
            "Resume from the last state, on machines with the same software.",
        )
