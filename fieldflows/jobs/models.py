"""Models by name in jobs: checked when the flow is built, and again where the job runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monty.json import MSONable

from fieldflows.errors import CheckpointError

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel, ModelInfo


@dataclass(frozen=True)
class ModelReference(MSONable):
    """A model as a job names it.

    Attributes:
        name: Bundled or registered name, absolute path, or ``sha256:`` and a hash.
        sha256: Hash that the model must have.
        dtype: ``"float64"`` or ``"float32"``.
        device: Torch device.
        head: Head of a model with several; None for the first.
    """

    name: str
    sha256: str
    dtype: str = "float64"
    device: str = "cpu"
    head: str | None = None

    @classmethod
    def resolve(
        cls, name: str | Path, dtype: str = "float64", device: str = "cpu", head: str | None = None
    ) -> tuple[ModelReference, ModelInfo]:
        """Return the reference and the card of a model; paths are made absolute.

        Raises:
            CheckpointError: If there is no such model, or the file is damaged.
            SettingsError: If the model has no such head.
        """
        from fieldflows.backends.base import load_model

        path = Path(name).expanduser()
        text = str(path.resolve()) if path.is_file() else str(name)
        info = load_model(text, dtype=dtype, device=device, head=head).info
        return cls(text, info.sha256, dtype, device, head), info

    def open(self) -> FieldModel:
        """Return the model, loaded once per process.

        Where the name means nothing, or another model, the hash is looked for: on this machine, and in the store of
        the job.

        Raises:
            CheckpointError: If it is not there, or is another one than when the flow was built.
        """
        from fieldflows.backends.base import load_model
        from fieldflows.errors import StoreError
        from fieldflows.jobs.artifacts import job_artifacts

        with job_artifacts():
            try:
                model = load_model(self.name, dtype=self.dtype, device=self.device, head=self.head)
            except (CheckpointError, StoreError):
                by_hash = self._by_hash()
                if by_hash is None:
                    raise
                return by_hash
            if model.info.sha256 == self.sha256:
                return model
            by_hash = self._by_hash()
            if by_hash is not None:
                return by_hash
            raise CheckpointError(
                f"Model {self.name!r} has sha256 {model.info.sha256[:12]}…, but the flow was built with "
                f"{self.sha256[:12]}….",
                "Build the flow again, or put the former file back.",
            )

    def _by_hash(self) -> FieldModel | None:
        from fieldflows.backends.base import load_model
        from fieldflows.errors import StoreError

        try:
            return load_model(f"sha256:{self.sha256}", dtype=self.dtype, device=self.device, head=self.head)
        except (CheckpointError, StoreError):
            return None
