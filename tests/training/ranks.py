"""Several processes for tests: forked from a server that has imported everything and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# imported once, by the server
import fieldflows.training.loop
import fieldflows.training.report  # noqa: F401
import tests.training.crystals  # noqa: F401

TIMEOUT = 120.0


def start(function: Callable[..., Any], size: int, *arguments: Any, timeout: float = TIMEOUT) -> list[tuple[Any, Any]]:
    """Start ``function(rank, *arguments)`` on each rank of a gloo group; returns processes and their pipes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.ranks"])
    handle, name = tempfile.mkstemp(prefix="gloo-")
    os.close(handle)
    os.unlink(name)
    started = []
    for rank in range(size):
        mine, theirs = context.Pipe()
        process = context.Process(target=_child, args=(theirs, rank, size, name, timeout, function, arguments))
        process.start()
        theirs.close()
        started.append((process, mine))
    return started


def finish(started: list[tuple[Any, Any]], wait: float = TIMEOUT) -> list[Any]:
    """Return what each rank returned, or the exception that it raised, or its exit code if it said nothing."""
    results = []
    for process, pipe in started:
        try:
            if not pipe.poll(wait):
                raise AssertionError(f"a rank said nothing within {wait} s")
            results.append(pipe.recv())
        except (EOFError, ConnectionResetError):
            process.join(wait)
            results.append(process.exitcode)
        finally:
            process.join(10)
            if process.is_alive():
                process.kill()
    return results


def run(function: Callable[..., Any], size: int, *arguments: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Start and finish."""
    return finish(start(function, size, *arguments, timeout=timeout))


def _child(
    pipe: Any, rank: int, size: int, name: str, timeout: float, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{name}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    try:
        pipe.send(function(rank, *arguments))
    except Exception as error:
        pipe.send(error)
    finally:
        Path(name).unlink(missing_ok=True)
