"""The MACE-Field backend: structures in, responses out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from fieldflows.backends.base import Directions, ModelInfo, Response
from fieldflows.backends.mace_field._mace import o3
from fieldflows.backends.mace_field.batches import Cost, available_bytes, peak_bytes, run_in_batches
from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata, checkpoint_bytes, load_checkpoint
from fieldflows.backends.mace_field.derivatives import respond, unit_displacements
from fieldflows.backends.mace_field.descriptors import invariant_features
from fieldflows.backends.mace_field.engine.engine import fastest
from fieldflows.backends.mace_field.graphs import Graph, build_graph, collate, to_device
from fieldflows.backends.mace_field.network import MACEFieldNetwork
from fieldflows.backends.mace_field.trajectory import TrajectoryEvaluator
from fieldflows.errors import EvaluationError, InputError, SettingsError, suggestion
from fieldflows.observables import ELECTRONIC_OBSERVABLES, OBSERVABLES, check_observables
from fieldflows.structures import StructureLike, as_atoms, check_structure

DTYPES = {"float32": torch.float32, "float64": torch.float64}

BATCH_BYTES = 3e8
"""Bytes of a batch on a CPU; larger ones were slower, because they fall out of its caches."""

GPU_FRACTION = 0.5
"""Part of the free memory of a GPU that a batch may take by estimate."""

UNCHECKED_BYTES = 1e9
"""Smaller needs are not compared with what is available, unless a budget is given."""


class MACEFieldModel:
    """A trained MACE-Field network (a :class:`fieldflows.backends.base.FieldModel`).

    Args:
        network: The network, in the precision in which it is to be evaluated.
        metadata: Its description.
        sha256: Hash of the checkpoint file; computed from the serialization if not given.
        head: Head to evaluate, by name; the first by default.
        batch_bytes: Estimated bytes of what is evaluated at once; by device if not given, and less after memory
            has run out.
        memory_budget: Bytes that one crystal may take; what is available if not given.
        engine: ``"fast"`` evaluates the same function several times faster where it covers the architecture;
            ``"reference"`` is the network itself.
    """

    def __init__(
        self,
        network: MACEFieldNetwork,
        metadata: CheckpointMetadata,
        sha256: str | None = None,
        head: str | None = None,
        batch_bytes: float | None = None,
        memory_budget: float | None = None,
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
            head=head,
            cutoff=config.r_max,
            dtype=str(network.dtype).removeprefix("torch."),
            license=metadata.license,
            provenance=dict(metadata.provenance),
        )
        self.batch_bytes = batch_bytes
        self.memory_budget = memory_budget

    @property
    def info(self) -> ModelInfo:
        """The card of the model."""
        return self._info

    @property
    def device(self) -> str:
        """The torch device that evaluates it."""
        return str(self.network.device)

    @classmethod
    def from_file(
        cls, path: str | Path, *, dtype: str = "float64", device: str = "cpu", head: str | None = None
    ) -> MACEFieldModel:
        """Load a checkpoint.

        Raises:
            CheckpointError: If the file is missing, truncated, altered or foreign.
            SettingsError: If it has no such head.
        """
        network, metadata, sha256 = load_checkpoint(path, DTYPES[dtype], device)
        return cls(network, metadata, sha256, head)

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
        single = not isinstance(structures, list | tuple)
        outcomes = self.evaluate_along([structures] if single else structures, fields, observables)
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Exception):
                if not single:
                    outcome.add_note(f"This is structure {number} of the list.")
                raise outcome
        return outcomes[0] if single else outcomes

    def stepper(self) -> TrajectoryEvaluator:
        """Return an evaluator of the steps of one trajectory (see :class:`fieldflows.backends.base.Stepper`)."""
        return TrajectoryEvaluator(self._evaluator, self._head)

    def descriptors(self, structures: Sequence[StructureLike]) -> list[np.ndarray | Exception]:
        """Return the invariant features of each crystal, (channels of all layers,), their mean over the atoms.

        They are those of the network at zero field, invariant under rotations, permutations and the choice of the cell.

        Args:
            structures: Crystals; one that fails gets its error.
        """
        found: list[np.ndarray | Exception] = []
        for item in structures:
            try:
                batch = to_device(collate([self.graph(item)]), self.network.device)
                values = invariant_features(self.network, batch).mean(dim=0).cpu().double().numpy()
                found.append(values if np.isfinite(values).all() else EvaluationError("Features are not finite."))
            except Exception as error:  # one that fails must not stop the others
                found.append(error)
        return found

    def evaluate_along(
        self,
        structures: Sequence[StructureLike],
        fields: ArrayLike | None = None,
        observables: Sequence[str] = ELECTRONIC_OBSERVABLES,
        directions: Sequence[Directions] | None = None,
    ) -> list[Response | Exception]:
        """Return a response or an error for each structure (see :class:`fieldflows.backends.base.DirectionalModel`).

        Structures are evaluated in batches of similar cost.  What fails alone fails for its structure only, and
        when memory runs out the batches are made smaller.
        """
        names = check_observables(observables)
        applied = _per_structure(fields, len(structures))
        outcomes: dict[int, Response | Exception] = {}
        graphs: dict[int, Graph] = {}
        for index, item in enumerate(structures):
            try:
                graph = self.graph(item)
                self._check_memory(graph, names)
            except Exception as error:  # one that cannot even be prepared must not stop the others
                outcomes[index] = error
            else:
                graphs[index] = graph
        places = list(graphs)

        def evaluate(members: list[int]) -> list[Response | Exception]:
            chosen = [places[k] for k in members]
            batch = to_device(collate([graphs[i] for i in chosen]), self.network.device)
            along = None if directions is None else [directions[i] for i in chosen]
            return self._evaluate(batch, applied[chosen], names, along)

        costs = [self._cost(graphs[i], names, None if directions is None else directions[i]) for i in places]
        before = self._batch_budget()
        done, budget = run_in_batches(costs, before, evaluate)
        if budget < before:
            self.batch_bytes = budget
        outcomes.update(zip(places, done, strict=True))
        return [outcomes[index] for index in range(len(structures))]

    def _evaluate(
        self, batch: Graph, fields: np.ndarray, names: tuple[str, ...], directions: list[Directions] | None
    ) -> list[Response | Exception]:
        """Return an outcome for each crystal of a batch."""
        field = torch.as_tensor(fields, dtype=batch["positions"].dtype, device=self.network.device)
        ptr = batch["ptr"].tolist()
        sizes = [end - start for start, end in itertools.pairwise(ptr)]
        along, displaced = _stacked(directions, sizes, "hessian" in names)
        values = {
            name: value.cpu().double().numpy()
            for name, value in respond(
                self._evaluator,
                batch,
                names,
                field if bool(fields.any()) else None,
                directions=None if along is None else along.to(field),
                displacements=None if displaced is None else displaced.to(field),
            ).items()
        }
        outcomes: list[Response | Exception] = []
        for g, (start, end) in enumerate(itertools.pairwise(ptr)):
            parts = {n: v[start:end] if OBSERVABLES[n].per_atom else v[g] for n, v in values.items() if n != "hessian"}
            if "hessian" in values:
                parts["hessian"] = values["hessian"][:, start:end]
            if directions is not None:
                _cut(parts, directions[g])
            elif "hessian" in parts:
                block = parts["hessian"][: 3 * (end - start)].reshape(3 * (end - start), -1)
                parts["hessian"] = 0.5 * (block + block.T)
            bad = [name for name, value in parts.items() if not np.isfinite(value).all()]
            if bad:
                outcomes.append(
                    EvaluationError(
                        f"{', '.join(bad)} of a crystal of {end - start} atoms came out not finite.",
                        "Look for atoms that are too close, or evaluate in float64.",
                    )
                )
                continue
            if "energy" in parts:
                parts["energy"] = float(parts["energy"])
            outcomes.append(Response(**parts, field=fields[g].copy()))
        return outcomes

    def _cost(self, graph: Graph, names: tuple[str, ...], directions: Directions | None) -> Cost:
        """Return what a crystal takes: bytes, and products for its second derivatives."""
        config, atoms = self.network.config, len(graph["positions"])
        products, second = 1, False
        if set(names) & {"born_effective_charges", "polarizability"}:
            products, second = 1 + (3 if directions is None else len(directions.field)), True
        if "hessian" in names:
            known = None if directions is None else directions.displacements
            products, second = products + (3 * atoms if known is None else len(known)), True
        channels = o3.Irreps(config.hidden_irreps)[0].mul
        item_size = torch.finfo(self.network.dtype).bits // 8
        edges = graph["edge_index"].shape[1]
        reference = self._evaluator is self.network
        size = peak_bytes(edges, atoms, channels, config.num_interactions, item_size, second, reference)
        return Cost(size, products)

    def _batch_budget(self) -> float:
        """Return the bytes of a batch."""
        if self.batch_bytes is not None:
            return self.batch_bytes
        if self.network.device.type == "cpu":
            return BATCH_BYTES
        there = available_bytes(self.network.device)
        return BATCH_BYTES if there is None else GPU_FRACTION * there

    def _check_memory(self, graph: Graph, names: tuple[str, ...]) -> None:
        """Raise if a crystal cannot fit into memory: on a CPU the system would end the process, and all work with it.

        Raises:
            EvaluationError: Says how much is needed and how much there is.
        """
        needed = self._cost(graph, names, None).size
        if needed < UNCHECKED_BYTES and self.memory_budget is None:
            return
        there = available_bytes(self.network.device) if self.memory_budget is None else self.memory_budget
        if there is not None and needed > there:
            raise EvaluationError(
                f"A crystal of {len(graph['positions'])} atoms with {graph['edge_index'].shape[1]} neighbor pairs "
                f"needs about {needed / 1e9:.2g} GB for {', '.join(names)}; {there / 1e9:.2g} GB are available.",
                "Use its primitive cell, float32, fewer channels, or a machine with more memory.",
            )


def _stacked(
    directions: list[Directions] | None, sizes: list[int], hessian: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return field directions (k, g, 3) and displacements (m, n, 3) of a batch, filled up with zeros."""
    if directions is None:
        return None, unit_displacements(sizes) if hessian else None
    along = np.zeros((max(len(d.field) for d in directions), len(sizes), 3))
    for g, item in enumerate(directions):
        along[: len(item.field), g] = item.field
    if not hessian:
        return torch.as_tensor(along), None
    vectors = [cast(np.ndarray, item.displacements) for item in directions]
    displaced = np.zeros((max(map(len, vectors)), sum(sizes), 3))
    for block, start, size in zip(vectors, itertools.accumulate([0, *sizes]), sizes, strict=False):
        displaced[: len(block), start : start + size] = block
    return torch.as_tensor(along), torch.as_tensor(displaced)


def _cut(parts: dict[str, np.ndarray], directions: Directions) -> None:
    """Drop the products with directions that only others of the batch have."""
    if "born_effective_charges" in parts:
        parts["born_effective_charges"] = parts["born_effective_charges"][:, : len(directions.field)]
    if "polarizability" in parts:
        parts["polarizability"] = parts["polarizability"][: len(directions.field)]
    if "hessian" in parts and directions.displacements is not None:
        parts["hessian"] = parts["hessian"][: len(directions.displacements)]


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


def load(name: str, *, dtype: str, device: str, head: str | None = None) -> MACEFieldModel | None:
    """Loader of the backend: paths of checkpoint files, which :func:`fieldflows.load_model` finds by their names."""
    return MACEFieldModel.from_file(name, dtype=dtype, device=device, head=head) if Path(name).is_file() else None
