"""The MACE-Field backend: structures in, responses out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, checkpoint_bytes, load_checkpoint
from fieldflows.backends.mace_field.derivatives import hessian, respond
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.graphs import Graph, build_graph, collate, pack, to_device
from fieldflows.backends.mace_field.network import MACEFieldNetwork
from fieldflows.errors import EvaluationError, InputError, SettingsError, suggestion
from fieldflows.models import bundled_models
from fieldflows.observables import ELECTRONIC_OBSERVABLES, OBSERVABLES, check_observables
from fieldflows.structures import StructureLike, as_atoms, check_structure

DTYPES = {"float32": torch.float32, "float64": torch.float64}

EDGES_PER_BATCH = {"cpu": 2000, "cuda": 60000}
"""Edges that are evaluated at once; on a CPU larger batches fall out of its caches."""


class MACEFieldModel:
    """A trained MACE-Field network (a :class:`fieldflows.backends.base.FieldModel`).

    Args:
        network: The network, in the precision in which it is to be evaluated.
        metadata: Its description.
        sha256: Hash of the checkpoint file; computed from the serialization if not given.
        head: Head to evaluate, by name; the first by default.
        edges_per_batch: Edges to evaluate at once; by device if not given.
        engine: ``"fast"`` evaluates the same function several times faster where it covers the architecture;
            ``"reference"`` is the network itself.
    """

    def __init__(
        self,
        network: MACEFieldNetwork,
        metadata: CheckpointMetadata,
        sha256: str | None = None,
        head: str | None = None,
        edges_per_batch: int | None = None,
        engine: Literal["fast", "reference"] = "fast",
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.metadata = metadata
        self._evaluator = fastest(self.network, order=2) if engine == "fast" else self.network
        if sha256 is None:
            sha256 = hashlib.sha256(checkpoint_bytes(network, metadata)).hexdigest()
        config = network.config
        head = config.heads[0] if head is None else head
        if head not in config.heads:
            raise SettingsError(f"Model {metadata.name!r} has no head {head!r}.", suggestion(head, config.heads))
        self._head = config.heads.index(head)
        self._info = ModelInfo(
            name=metadata.name,
            backend="mace_field",
            sha256=sha256,
            elements=tuple(chemical_symbols[z] for z in config.atomic_numbers),
            trained_labels=metadata.trained_labels,
            heads=tuple(config.heads),
            cutoff=config.r_max,
            dtype=str(network.dtype).removeprefix("torch."),
            license=metadata.license,
            provenance=dict(metadata.provenance),
        )
        self.edges_per_batch = edges_per_batch or EDGES_PER_BATCH.get(network.device.type, 2000)

    @property
    def info(self) -> ModelInfo:
        """The card of the model."""
        return self._info

    @property
    def device(self) -> str:
        """The torch device that evaluates it."""
        return str(self.network.device)

    @classmethod
    def from_file(cls, path: str | Path, *, dtype: str = "float64", device: str = "cpu") -> MACEFieldModel:
        """Load a checkpoint.

        Raises:
            CheckpointError: If the file is missing, truncated, altered or foreign.
        """
        network, metadata, sha256 = load_checkpoint(path, DTYPES[dtype], device)
        return cls(network, metadata, sha256)

    def graph(self, structure: StructureLike) -> Graph:
        """Return the graph of one structure after checking it.

        Raises:
            StructureError: If it cannot be computed.
            UnknownElementError: If it holds an element that the model does not know.
        """
        atoms = as_atoms(structure)
        check_structure(atoms)
        config = self.network.config
        return build_graph(atoms, config.atomic_numbers, config.r_max, self.network.dtype, self._head)

    def evaluate(  # type: ignore[no-untyped-def]
        self,
        structures,
        fields: ArrayLike | None = None,
        observables: Sequence[str] = ELECTRONIC_OBSERVABLES,
    ):
        """Return the response of one structure, or a list of them (see :class:`~fieldflows.backends.base.FieldModel`).

        Example:
            >>> from fieldflows import load_model
            >>> from ase.build import bulk
            >>> response = load_model("dielectric").evaluate(bulk("MgO", "rocksalt", a=4.21))
            >>> response.polarizability.shape
            (3, 3)
        """
        names = check_observables(observables)
        single = not isinstance(structures, list | tuple)
        graphs = [self.graph(item) for item in ([structures] if single else structures)]
        applied = _per_structure(fields, len(graphs))
        responses: list[Response | None] = [None] * len(graphs)
        for group in pack([g["edge_index"].shape[1] for g in graphs], self.edges_per_batch):
            batch = to_device(collate([graphs[i] for i in group]), self.network.device)
            for i, response in zip(group, self._evaluate(batch, applied[group], names), strict=True):
                responses[i] = response
        return responses[0] if single else responses

    def _evaluate(self, batch: Graph, fields: np.ndarray, names: tuple[str, ...]) -> list[Response]:
        field = torch.as_tensor(fields, dtype=self.network.dtype, device=self.network.device)
        at = field if bool(field.any()) else None
        values = {
            name: value.cpu().double().numpy()
            for name, value in respond(self._evaluator, batch, [n for n in names if n != "hessian"], at).items()
        }
        blocks = hessian(self._evaluator, batch, at) if "hessian" in names else None
        ptr = batch["ptr"].tolist()
        responses = []
        for g, (start, end) in enumerate(itertools.pairwise(ptr)):
            parts = {n: v[start:end] if OBSERVABLES[n].per_atom else v[g] for n, v in values.items()}
            if blocks is not None:
                parts["hessian"] = blocks[g].cpu().double().numpy()
            for name, value in parts.items():
                if not np.isfinite(value).all():
                    raise EvaluationError(
                        f"{name} of structure {g} of a batch is not finite.",
                        "Look for atoms that are too close, or evaluate in float64.",
                    )
            if "energy" in parts:
                parts["energy"] = float(parts["energy"])
            responses.append(Response(**parts, field=fields[g].copy()))
        return responses


def _per_structure(fields: ArrayLike | None, count: int) -> np.ndarray:
    """Return fields of shape (count, 3) in V/Å."""
    if fields is None:
        return np.zeros((count, 3))
    array = np.asarray(fields, dtype=float)
    if array.shape not in ((3,), (count, 3)):
        raise InputError(f"fields must have shape (3,) or ({count}, 3), found {array.shape}.", "Give V/Å, x, y, z.")
    if not np.isfinite(array).all():
        raise InputError("fields has values that are not finite.")
    return np.broadcast_to(array, (count, 3)).copy()


def load(name: str, *, dtype: str, device: str) -> MACEFieldModel | None:
    """Loader of the backend: bundled names, ``sha256:...`` of a bundled model, and paths of checkpoint files."""
    models = bundled_models()
    if name in models:
        return MACEFieldModel.from_file(models[name], dtype=dtype, device=device)
    if name.startswith("sha256:"):
        for path in models.values():
            if hashlib.sha256(path.read_bytes()).hexdigest() == name.removeprefix("sha256:"):
                return MACEFieldModel.from_file(path, dtype=dtype, device=device)
        return None
    if Path(name).is_file():
        return MACEFieldModel.from_file(name, dtype=dtype, device=device)
    return None
