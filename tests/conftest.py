"""What holds for every test: numerical libraries run on one thread, and the user's folders stay as they are.

Several threads per process make tiny models slower, by a factor of ten and more on a busy machine.  The variables
must be set before torch and numpy load, hence not in a fixture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


@pytest.fixture(autouse=True, scope="session")
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep files and models of the tests out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIELDFLOWS_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        patch.setenv("FIELDFLOWS_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setenv("FIELDFLOWS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FIELDFLOWS_ARTIFACT_SOURCES", raising=False)
        yield


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a test does to the logging of the process: workflow engines set up handlers of their own."""
    before = {logger: (list(logger.handlers), logger.level, logger.propagate, logger.disabled) for logger in _loggers()}
    yield
    for logger in _loggers():
        handlers, level, propagate, disabled = before.get(logger, ([], logging.NOTSET, True, False))
        for handler in logger.handlers[:]:
            if handler not in handlers and type(handler) in (logging.StreamHandler, logging.FileHandler):
                logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(item for item in list(known) if isinstance(item, logging.Logger))]
