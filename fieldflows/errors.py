"""The exception tree.

::

    FieldflowsError
    ├── InputError              what the user handed in
    │   ├── StructureError      a crystal that cannot be computed
    │   │   └── UnknownElementError
    │   ├── PathError           two crystals that no small distortion connects
    │   ├── SettingsError       a wrong option, key or name
    │   └── QueryError          a query that cannot be read
    ├── ModelError              the model file or what is asked of a model
    │   ├── CheckpointError     truncated, altered or foreign file
    │   ├── UntrustedPickleError
    │   ├── BackboneError       an architecture that cannot carry a field
    │   └── CapabilityError     an observable that the model was not trained for
    ├── DataError               labelled data
    │   ├── LabelError          a label that is missing or malformed
    │   └── ConventionError     a label in another unit or convention than declared
    ├── ServiceError            a public service that data come from
    │   ├── KeyProblem          the key is missing, malformed or refused
    │   ├── Unreachable         no network, time-outs, a service that is down
    │   └── WrongAnswer         an answer that is none, or of another schema than expected
    ├── StoreError              the place where documents go
    │   └── ArtifactError       a file that its sha256 names: missing, damaged, out of reach
    ├── EvaluationError         a computation that failed (numbers are not finite, out of memory)
    └── TrainingError           a training run that cannot go on

Every message says what was asked, what was found and what to do next; the last part may be given as ``hint``.
All of them survive pickling, so that they can travel between processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FieldflowsError(Exception):
    """Base of all errors that the package raises on purpose.

    Args:
        message: What was asked and what was found, in one sentence.
        hint: What to do next, in one sentence.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InputError(FieldflowsError):
    """What the user handed in cannot be used."""


class StructureError(InputError):
    """A crystal structure cannot be computed."""


class UnknownElementError(StructureError):
    """A crystal holds an element that the model was not built for."""


class PathError(InputError):
    """No path of small distortion connects two crystals, or their symmetry is not that of such a pair."""


class SettingsError(InputError):
    """An option, a key of a configuration file or a name is wrong."""


class QueryError(InputError):
    """A query over stored documents cannot be read."""


class ModelError(FieldflowsError):
    """Something is wrong with a model or with what is asked of it."""


class CheckpointError(ModelError):
    """A checkpoint is missing, truncated, altered or of a foreign format."""


class UntrustedPickleError(ModelError):
    """A file could run code on loading, and the caller did not say that it is trusted."""


class BackboneError(ModelError):
    """A MACE architecture cannot carry a field coupling."""


class CapabilityError(ModelError):
    """A model is asked for a quantity that its training labels do not support."""


class DataError(FieldflowsError):
    """Labelled data cannot be used."""


class LabelError(DataError):
    """A label is missing, malformed or not finite."""


class ConventionError(DataError):
    """Labels are in another unit or convention than declared."""


class ServiceError(FieldflowsError):
    """A public service that data come from cannot be used."""


class KeyProblem(ServiceError):
    """The key of a service is missing, malformed or refused; the key itself is never part of the message."""


class Unreachable(ServiceError):
    """A service does not answer: no network, time-outs, or it is down."""


class WrongAnswer(ServiceError):
    """A service answers with something else than was asked for."""


class StoreError(FieldflowsError):
    """Documents cannot be read from or written to the store."""


class ArtifactError(StoreError):
    """A file that is addressed by its sha256 is missing, damaged or out of reach, or cannot be written."""


class EvaluationError(FieldflowsError):
    """A computation failed."""


class TrainingError(FieldflowsError):
    """A training run cannot go on."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known name, or lists the known ones.

    Example:
        >>> suggestion("polarisation", ["polarization", "forces"])
        "Did you mean 'polarization'? Known: forces, polarization."
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    start = f"Did you mean {near[0]!r}? " if near else ""
    return f"{start}Known: {', '.join(names)}."
