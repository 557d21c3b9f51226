"""The registry of models on this machine: a folder of checkpoints by name and version, with an index.

``<folder>/<name>/<version>/model.safetensors`` are the files, ``<folder>/index.json`` says what is in them.  The index
is made anew from the files where it is missing or damaged.  A file is verified against the index whenever it is looked
up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fieldflows.artifacts import SHORTEST_PREFIX, checked_sha256, data_folder, file_sha256, replacing
from fieldflows.errors import CheckpointError, SettingsError, suggestion
from fieldflows.schemas.model import RegisteredModel

FOLDER_VARIABLE = "FIELDFLOWS_MODELS"
"""Environment variable that names the folder of the registry."""

INDEX_NAME = "index.json"
FORMAT, FORMAT_VERSION = "fieldflows-models", 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_LARGEST_HEADER = 100_000_000
_LOGGER = logging.getLogger(__name__)


class ModelRegistry:
    """Models by name and version in a folder.

    Args:
        folder: The folder; by default that of :func:`registry_folder`.  Made when something is registered.
        reserved: Names that mean something else and cannot be registered, with what they mean.
    """

    def __init__(self, folder: str | Path | None = None, reserved: dict[str, str] | None = None) -> None:
        self.folder = registry_folder() if folder is None else Path(folder).expanduser().absolute()
        self.reserved = reserved or {}

    # ---- looking up ----------------------------------------------------------------------------------------------

    def entries(self) -> list[RegisteredModel]:
        """Return all entries, by name and version."""
        if not self.folder.is_dir():
            return []
        return self._read_index() or self.rebuild()

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted({entry.name for entry in self.entries()})

    def find(self, name: str) -> RegisteredModel | None:
        """Return the entry of ``name`` (its latest version) or ``name@version``; None if the name is unknown.

        Raises:
            CheckpointError: If the name is known, but not the version.
        """
        base, separator, version = name.partition("@")
        versions = [entry for entry in self.entries() if entry.name == base]
        if not versions:
            return None
        if not separator:
            return max(versions, key=lambda entry: entry.version)
        for entry in versions:
            if str(entry.version) == version:
                return entry
        heads = max(versions, key=lambda entry: entry.version).heads
        hint = f"{version!r} is a head: give head={version!r}." if version in heads else None
        known = ", ".join(str(entry.version) for entry in versions)
        raise CheckpointError(f"The model {base!r} has no version {version!r}.", hint or f"Known versions: {known}.")

    def with_sha256(self, prefix: str) -> list[RegisteredModel]:
        """Return the entries whose sha256 starts with some digits, 8 at least."""
        digits = checked_sha256(prefix, SHORTEST_PREFIX)
        return [entry for entry in self.entries() if entry.sha256.startswith(digits)]

    def path(self, entry: RegisteredModel) -> Path:
        """Return the file of an entry, verified.

        Raises:
            CheckpointError: If it is missing, or not the file that was registered.
        """
        path = self.folder / entry.file
        hint = f"Remove the entry with `fieldflows model remove {entry.title}`, and register the model again."
        if not path.is_file():
            raise CheckpointError(f"The file of the registered model {entry.title}, {path}, is missing.", hint)
        found = file_sha256(path)
        if found != entry.sha256:
            raise CheckpointError(
                f"The file of the registered model {entry.title}, {path}, has sha256 {found[:12]}..., but "
                f"{entry.sha256[:12]}... was registered: it was altered.",
                hint,
            )
        return path

    # ---- changing ------------------------------------------------------------------------------------------------

    def register(self, path: str | Path, name: str, new_version: bool = False) -> RegisteredModel:
        """Copy a checkpoint into the registry under a name; what is there already under that name is not copied again.

        Whether it can be loaded is for the caller to see (:func:`fieldflows.load_model` says so).

        Args:
            path: The checkpoint.
            name: The name.
            new_version: Let the name stand for this model from now on, if it is taken by another one.

        Raises:
            SettingsError: If the name cannot be used, or is taken.
            CheckpointError: If there is no such file.
            ArtifactError: If the folder cannot be written.
        """
        source = Path(path)
        self.check_name(name)
        if not source.is_file():
            raise CheckpointError(f"There is no checkpoint {source} to register.")
        sha256 = file_sha256(source)
        with self._locked():
            entries = self.entries()
            versions = sorted((entry for entry in entries if entry.name == name), key=lambda entry: entry.version)
            for entry in versions:
                if entry.sha256 == sha256 and (entry is versions[-1] or not new_version):
                    return self._healed(entry, source)
            if versions and not new_version:
                raise SettingsError(
                    f"The name {name!r} is taken by another model (sha256 {versions[-1].sha256[:12]}...).",
                    "Choose another name, or ask for a new version (--new-version).",
                )
            version = versions[-1].version + 1 if versions else 1
            file = f"{name}/{version}/model{source.suffix or '.safetensors'}"
            self._copy(source, self.folder / file)
            made = describe(self.folder / file, name, version, file, sha256)
            self._write_index([*entries, made])
        return made

    def remove(self, name: str) -> list[RegisteredModel]:
        """Remove ``name`` (all versions) or ``name@version`` with its files; return the entries.

        Raises:
            CheckpointError: If there is none.
            ArtifactError: If the folder cannot be written.
        """
        with self._locked():
            entries = self.entries()
            one = self.find(name)
            if one is None:
                raise CheckpointError(f"There is no registered model {name!r}.", suggestion(name, self.names()))
            gone = [one] if "@" in name else [entry for entry in entries if entry.name == name]
            self._write_index([entry for entry in entries if entry not in gone])
            for entry in gone:
                shutil.rmtree((self.folder / entry.file).parent, ignore_errors=True)
            with contextlib.suppress(OSError):  # other versions remain
                (self.folder / one.name).rmdir()
        return gone

    def rebuild(self) -> list[RegisteredModel]:
        """Make the index anew from the files, and return the entries; files that cannot be read are left out."""
        entries = []
        for path in sorted(self.folder.glob("*/*/model.*")):
            name, version = path.parent.parent.name, path.parent.name
            if not _NAME.fullmatch(name) or not version.isdecimal() or path.name.startswith("."):
                continue
            file = f"{name}/{version}/{path.name}"
            entries.append(describe(path, name, int(version), file, file_sha256(path)))
        if entries:
            _LOGGER.warning("Made the index of the models in %s anew from %d files.", self.folder, len(entries))
            self._write_index(entries)
        return entries

    # ---- files ---------------------------------------------------------------------------------------------------

    def _read_index(self) -> list[RegisteredModel] | None:
        """Return the entries of the index; None if it is missing or damaged."""
        path = self.folder / INDEX_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._warn(str(error))
            return None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            self._warn(f"it is not of format {FORMAT!r}")
            return None
        if isinstance(content.get("format_version"), int) and content["format_version"] > FORMAT_VERSION:
            raise CheckpointError(f"{path} was written by a newer fieldflows.", "Update fieldflows.")
        try:
            entries = [RegisteredModel.model_validate(item) for item in content["models"]]
        except (KeyError, TypeError, ValidationError) as error:
            self._warn(str(error))
            return None
        if any(Path(entry.file).is_absolute() or ".." in Path(entry.file).parts for entry in entries):
            self._warn("it names files outside the folder")
            return None
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def _warn(self, why: str) -> None:
        first = " ".join(why.split())[:120]
        _LOGGER.warning("The index of the models in %s is damaged (%s).", self.folder, first)

    def _write_index(self, entries: list[RegisteredModel]) -> None:
        ordered = sorted(entries, key=lambda entry: (entry.name, entry.version))
        content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        content["models"] = [entry.model_dump(mode="json") for entry in ordered]
        with replacing(self.folder / INDEX_NAME) as handle:
            handle.write(json.dumps(content, indent=1).encode() + b"\n")

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as reading, replacing(target) as handle:
            shutil.copyfileobj(reading, handle)

    def _healed(self, entry: RegisteredModel, source: Path) -> RegisteredModel:
        """Put the file of an entry back if it is missing or altered."""
        target = self.folder / entry.file
        if not target.is_file() or file_sha256(target) != entry.sha256:
            self._copy(source, target)
        return entry

    def check_name(self, name: str) -> None:
        """Raise unless a model can be registered under a name, whether or not another one has it.

        Raises:
            SettingsError: Says why not.
        """
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} cannot be the name of a model.", "Use letters, digits and . _ + -, 80 at most."
            )
        if name in self.reserved:
            raise SettingsError(f"The name {name!r} is taken: {self.reserved[name]}.", "Choose another name.")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the registry; the lock goes with the process."""
        import fcntl

        from fieldflows.artifacts import disk_error

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / ".lock").open("w")
        except OSError as error:
            raise disk_error(str(self.folder), error) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def registry_folder() -> Path:
    """Return the folder of the registry: ``FIELDFLOWS_MODELS``, or ``models`` in the user's data folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    return (Path(named).expanduser() if named else data_folder() / "models").absolute()


def describe(path: Path, name: str, version: int, file: str, sha256: str) -> RegisteredModel:
    """Return the entry of a file, with what its header says; a foreign format says nothing."""
    from ase.data import chemical_symbols

    header = read_header(path)
    network = header.get("network") or {}
    provenance = header.get("provenance") or {}
    try:
        return RegisteredModel(
            name=name,
            version=version,
            sha256=sha256,
            size=path.stat().st_size,
            file=file,
            model_name=str(header.get("name", "")),
            elements=tuple(chemical_symbols[int(z)] for z in network.get("atomic_numbers", ())),
            trained_labels=tuple(header.get("trained_labels", ())),
            heads=tuple(network.get("heads", ())),
            cutoff=network.get("r_max"),
            license=str(header.get("license", "")),
            dataset_digest=provenance.get("dataset_digest"),
            metrics=dict(provenance.get("metrics") or {}),
            registered_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        )
    except (ValidationError, TypeError, ValueError, IndexError, AttributeError):
        return RegisteredModel(name=name, version=version, sha256=sha256, size=path.stat().st_size, file=file)


def read_header(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours says about itself, without torch; {} for any other file."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= _LARGEST_HEADER:
                return {}
            header = json.loads(handle.read(length))
            found = json.loads(header["__metadata__"]["fieldflows"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
