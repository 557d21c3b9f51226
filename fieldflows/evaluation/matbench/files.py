"""Where the file of the task is, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fieldflows import artifacts
from fieldflows.artifacts import data_folder, replacing
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.matbench import ADDRESS, OFFICIAL_SHA256, read_matbench
from fieldflows.errors import DataError

if TYPE_CHECKING:
    from fieldflows.datasets.matbench import MatbenchEntry

FILE_NAME = "matbench_dielectric.json.gz"


def official_file(download: bool = False, address: str = ADDRESS) -> Path:
    """Return the official file in the user's data folder, fetched on request and verified by its sha256.

    Args:
        download: Fetch it if it is not there.
        address: Where to fetch it from.

    Raises:
        DataError: If it is not there and may not be fetched, or was altered.
        ArtifactError: If it cannot be fetched, or what comes is another file.
    """
    target = data_folder() / "matbench" / FILE_NAME
    if target.is_file():
        if file_sha256(target) != OFFICIAL_SHA256:
            raise DataError(f"{target} was altered: it has another SHA-256.", "Remove it and fetch it again.")
        return target
    if not download:
        raise DataError(
            f"There is no {target}.",
            f"Fetch it with --download (from {address}), or name the file that you have with --file.",
        )
    fetched = artifacts.download(address, OFFICIAL_SHA256)
    with replacing(target) as handle:
        handle.write(fetched.read_bytes())
    return target


def read_task(path: str | Path, index: str | Path | None = None) -> tuple[list[MatbenchEntry], str]:
    """Return the rows of the official file, or of another one that an index names, and the SHA-256 of the file.

    Args:
        path: The file.
        index: For another file than the official one: CSV with the columns row and mbid.

    Raises:
        DataError: If the file is missing or of another form; if it is not the official one and has no index.
    """
    path = Path(path)
    entries = read_matbench(path, "" if index else OFFICIAL_SHA256, index)
    if not entries:
        raise DataError(f"No row of {path} can be used.", "Check the file.")
    return entries, file_sha256(path)
