"""The loss: per observable a function of the error, masked where labels are missing, averaged over frames.

For observable o with weight λ_o, scale s_o and frames g with weight w_g and mask m_g (Martin et al., PRX Intelligence
1, 013006 (2026), Eqs. 29-33)::

    L = Σ_o λ_o (1/W_o) Σ_g w_g m_g ρ̄_g,     W_o = Σ_g w_g m_g,     ρ̄_g = mean over components of ρ(Δ/s_o)

The numerators λ_o Σ_g w_g m_g ρ̄_g and the normalizations W_o are sums over frames, so that a batch may be cut into
parts: both are added up over them, and only then divided.

Δ is the error of one component; energies per atom; polarizations folded into one quantum cell of the frame.
ρ(x) is the Huber function (x²/2 below δ, δ(|x| − δ/2) above), |x| or x².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fieldflows.backends.mace_field.graphs import Graph
from fieldflows.observables import OBSERVABLES
from fieldflows.training.config import Term
from fieldflows.training.data import Batch, Frame


def fold_polarization(difference: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Return polarization differences folded into the cell of polarization quanta, shape (g, 3), e/Å².

    x = ΔP Q⁻¹ with the quanta Q = cell/Ω as rows; ΔP_fold = (x − round(x)) Q.  The number of whole quanta is
    constant, hence the gradient is that of ΔP.

    Args:
        difference: ΔP, (g, 3), in e/Å².
        cell: Lattice vectors as rows, (g, 3, 3), in Å.
    """
    quanta = cell / torch.linalg.det(cell).abs()[:, None, None]
    with torch.no_grad():
        whole = torch.round(torch.linalg.solve(quanta.transpose(1, 2), difference.unsqueeze(-1)).squeeze(-1))
    return difference - torch.einsum("gk,gki->gi", whole, quanta)


def penalty(error: torch.Tensor, term: Term, scale: float) -> torch.Tensor:
    """Return ρ(error/scale), component by component."""
    x = error / scale
    if term.kind == "l1":
        return x.abs()
    if term.kind == "mse":
        return x.square()
    size = x.abs()
    return torch.where(size <= term.delta, 0.5 * x.square(), term.delta * (size - 0.5 * term.delta))


def frame_means(values: torch.Tensor, batch: Batch, per_atom: bool) -> torch.Tensor:
    """Return the mean over the components of each frame, shape (g,)."""
    flat = values.reshape(len(values), -1).mean(dim=1)
    if not per_atom:
        return flat
    return flat.new_zeros(batch.n_graphs).index_add(0, batch.owner, flat) / batch.sizes.to(flat.dtype)


class Loss:
    """The sum over the observables.

    Args:
        terms: Observable to term.
        scales: Observable to the number that errors are divided by, in the unit of the observable.
    """

    def __init__(self, terms: Mapping[str, Term], scales: Mapping[str, float]) -> None:
        self.terms = dict(terms)
        self.scales = dict(scales)

    def per_frame(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ρ averaged over the components of each frame, before weights and masks: observable to (g,).

        Args:
            predictions: Observable to prediction.  With ``directions``, Z* and α are products v·Z* of shape (n, 3)
                and α·v of shape (g, 3).
            batch: The labels.
            directions: (g, 3) the vectors v.
        """
        result = {}
        for key, target in batch.targets.items():
            term, scale = self.terms[key], self.scales[key]
            if directions is not None and key == "born_effective_charges":
                target = torch.einsum("ni,nij->nj", directions[batch.owner], target)
            elif directions is not None and key == "polarizability":
                target = torch.einsum("gij,gj->gi", target, directions)
            error = predictions[key] - target
            if key == "energy":
                error = error / batch.sizes.to(error.dtype)
            elif key == "polarization":
                error = fold_polarization(error, batch.cells)
            result[key] = frame_means(penalty(error, term, scale), batch, OBSERVABLES[key].per_atom)
        return result

    def normalizations(self, frames: Batch | Sequence[Frame]) -> dict[str, torch.Tensor | float]:
        """Return W_o = Σ_g w_g m_g by observable; by the atoms, Σ_g w_g m_g N_g, where a term says so.

        It depends on the labels alone, so that it is known before the first prediction.

        Args:
            frames: A batch (the answer is tensors of the precision of its labels) or frames (numbers).
        """
        if isinstance(frames, Batch):
            return {key: self._weights(key, frames).sum() for key in frames.targets}
        result: dict[str, torch.Tensor | float] = {}
        for key, term in self.terms.items():
            atoms = term.normalization == "atoms"
            weights = [f.label_weight(key) * (len(f.atoms) if atoms else 1) for f in frames if key in f.labels]
            if weights:
                result[key] = float(sum(weights))
        return result

    def numerators(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return λ_o Σ_g w_g m_g ρ̄_g by observable; L = Σ_o numerators[o] / W_o (see :meth:`normalizations`).

        Args:
            predictions: As in :meth:`per_frame`.
            batch: The labels.
            directions: As in :meth:`per_frame`.
        """
        found = self.per_frame(predictions, batch, directions)
        return {key: self.terms[key].weight * (self._weights(key, batch) * found[key]).sum() for key in found}

    def __call__(
        self, predictions: Mapping[str, torch.Tensor], batch: Batch, directions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch by itself, and its weighted parts by observable."""
        whole = self.normalizations(batch)
        parts = {key: value / whole[key] for key, value in self.numerators(predictions, batch, directions).items()}
        return torch.stack(list(parts.values())).sum(), parts

    def _weights(self, key: str, batch: Batch) -> torch.Tensor:
        """Return the weights (g,) of the frame means of an observable, zero where a frame has no label."""
        weights = batch.weights[key]
        if self.terms[key].normalization == "atoms":
            weights = weights * batch.sizes.to(weights.dtype)
        return weights


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """Return a generator that depends on seed, step and purpose alone."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + step) * 7 + purpose) % (2**63))


def displaced(graph: Graph, noise: float, seed: int, step: int) -> Graph:
    """Return the graph with normally distributed displacements of a width in Å; edges stay those of the original."""
    positions = graph["positions"]
    random = torch.randn(positions.shape, generator=step_generator(seed, step, 1), dtype=torch.float64)
    moved = positions + noise * random.to(positions)
    sender, receiver = graph["edge_index"]
    lengths = torch.linalg.vector_norm(moved[receiver] - moved[sender] + graph["shifts"], dim=1)
    every = torch.arange(len(lengths), device=lengths.device)
    return {**graph, "positions": moved, "distances": lengths, "distance_index": every}


def random_directions(count: int, seed: int, step: int, like: torch.Tensor) -> torch.Tensor:
    """Return one random unit vector per frame, shape (count, 3), that depends on seed and step alone.

    The mean over directions of the mean square component of v·Z is that of Z: ⟨|v·Z|²/3⟩ = Σ_ij Z_ij²/9.
    """
    vectors = torch.randn(count, 3, generator=step_generator(seed, step, 0), dtype=torch.float64)
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors.to(like)
