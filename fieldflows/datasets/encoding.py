"""How a labeled frame is written, read back, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import RawFrame, format_value, parse_comment
from fieldflows.datasets.frame import LABEL_SHAPES, LabeledFrame, label_shape
from fieldflows.schemas.dataset import DATASET_SCHEMA_VERSION

_PREFIX = "label_"
_EXTRA = "extra_"
_TEXT = "text_"
_INTEGERS = frozenset({"search_id", "path_index"})


def to_raw(frame: LabeledFrame) -> RawFrame:
    """Return a frame as extended XYZ holds it: labels and extras under prefixed keys that no reader moves."""
    info: dict[str, Any] = {}
    _put(info, "material", frame.material)
    _put(info, "source", frame.source)
    info["source_index"] = frame.source_index
    info["split"] = frame.split or ""
    info["flags"] = ",".join(frame.flags)
    arrays = {}
    for name, value in sorted(frame.labels.items()):
        if LABEL_SHAPES[name][:1] == ("n",):
            arrays[_PREFIX + name] = value.reshape(len(frame), -1)
        else:
            info[_PREFIX + name] = float(value) if value.ndim == 0 else value.ravel()
    for name, item in sorted(frame.extra.items()):
        _put(info, _EXTRA + name, item)
    atoms = frame.atoms
    return RawFrame(atoms.numbers, atoms.positions, np.array(atoms.cell[:]), atoms.pbc, info, arrays)


def _put(info: dict[str, Any], key: str, value: Any) -> None:
    """Add a value; text that would read back as something else (InF, NaN, 2025, quotes) goes under a key of its own."""
    if isinstance(value, str) and not _reads_back(value):
        info[_TEXT + key] = "~" + quote(value, safe="")
    else:
        info[key] = value


@lru_cache(maxsize=65536)
def _reads_back(text: str) -> bool:
    return "\n" not in text and parse_comment(f"key={format_value(text)}") == {"key": text}


def from_raw(raw: RawFrame) -> LabeledFrame:
    """Return the frame that :func:`to_raw` wrote."""
    texts = {key.removeprefix(_TEXT): unquote(str(raw.info.pop(key))[1:])
             for key in list(raw.info) if key.startswith(_TEXT)}  # fmt: skip
    raw.info.update(texts)
    labels: dict[str, NDArray[np.float64]] = {}
    for key, value in (raw.info | raw.arrays).items():
        if key.startswith(_PREFIX):
            name = key.removeprefix(_PREFIX)
            labels[name] = np.asarray(value, dtype=float).reshape(label_shape(name, len(raw)))
    extra: dict[str, Any] = {}
    for key, value in raw.info.items():
        if key.startswith(_EXTRA):
            name = key.removeprefix(_EXTRA)
            if isinstance(value, np.ndarray) and value.size == 9:
                value = value.reshape(3, 3)
            extra[name] = int(value) if name in _INTEGERS else value
    return LabeledFrame(
        atoms=raw.atoms(),
        labels=labels,
        material=str(raw.info["material"]),
        source=str(raw.info["source"]),
        source_index=int(raw.info["source_index"]),
        split=str(raw.info["split"]) or None,
        flags=tuple(str(raw.info["flags"]).split(",")) if raw.info["flags"] else (),
        extra=extra,
    )


def dataset_digest(frames: Sequence[LabeledFrame]) -> str:
    """Return the SHA-256 of the canonical content: crystals, labels, materials, origins, subsets, flags, extras.

    Floats enter as little-endian float64; the time of the build and the path of the files do not enter.
    """
    total = hashlib.sha256(f"fieldflows dataset {DATASET_SCHEMA_VERSION}".encode())
    for frame in frames:
        atoms = frame.atoms
        text = [frame.material, frame.source, str(frame.source_index), frame.split or "", ",".join(frame.flags)]
        total.update("\x1f".join(text).encode() + b"\x1e")
        total.update(np.asarray(atoms.numbers, dtype="<i8").tobytes())
        for array in (atoms.positions, np.array(atoms.cell[:])):
            total.update(_canonical(array))
        for name in sorted(frame.labels):
            total.update(name.encode() + b"\x1e" + _canonical(frame.labels[name]))
        for name, value in sorted(frame.extra.items()):
            content = value.encode() if isinstance(value, str) else _canonical(np.asarray(value, dtype=float))
            total.update(name.encode() + b"\x1e" + content)
    return total.hexdigest()


def _canonical(array: NDArray[np.float64]) -> bytes:
    return (np.asarray(array, dtype="<f8") + 0.0).tobytes()  # −0.0 becomes 0.0
