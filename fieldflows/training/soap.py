"""Adam in the eigenbasis of Shampoo's preconditioner (SOAP; Vyas et al., arXiv:2409.11321, Algorithm 3).

For a block W of weights, rows by columns, with gradient G in step t::

    L ← β₂ L + (1 − β₂) G Gᵀ,   R ← β₂ R + (1 − β₂) Gᵀ G,   M ← β₁ M + (1 − β₁) G
    G' = Q_Lᵀ G Q_R,   V ← β₂ V + (1 − β₂) G'²
    W ← W − η Q_L clamp[ Q_Lᵀ M Q_R/(1 − β₁ᵗ) / (√(V/(1 − β₂ᵗ)) + ε), −1, 1 ] Q_Rᵀ

Q_L and Q_R hold the eigenvectors of L and R; every few steps they are brought up to date by one power iteration and
a QR decomposition.  Directions in which the loss is steep and directions in which it is flat thus get steps of their
own also where they mix many weights, as they do in the linear maps between channels of an equivariant network.

The weights of such networks are stored flat: one parameter holds the matrices of many pairs of irreps side by side.
:func:`weight_blocks` finds them.  A side of a block that is longer than :data:`LARGEST_SIDE` is left as it is, and a
block of one number is plain Adam.  The first gradient only sets up the bases of the blocks that have one, so that t
counts from the second one there.  The clamp is not in the paper: with β₁ = β₂ nothing exceeds it in a fixed basis, but
right after an update of the bases V belongs to the old one, and where it was nearly zero the quotient could be
anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

LARGEST_SIDE = 256
"""Longest side of a block that gets a basis of its own; its eigenvectors cost the cube."""

Block = tuple[int, int, int]
"""Offset in the flat parameter, rows, columns."""


def weight_blocks(network: torch.nn.Module) -> dict[str, list[Block]]:
    """Return the matrices that each trained parameter is made of, by name.

    Flat weights of e3nn's linear maps and tensor products are cut by their instructions; other parameters are
    matrices with the last axis as columns, and vectors columns.
    """
    blocks: dict[str, list[Block]] = {}
    for prefix, module in network.named_modules():
        found = _instructed(module)
        if found:
            blocks[f"{prefix}.weight" if prefix else "weight"] = found
    for name, parameter in network.named_parameters():
        if name not in blocks or _size(blocks[name]) != parameter.numel():
            columns = parameter.shape[-1] if parameter.dim() >= 2 else 1
            blocks[name] = [(0, parameter.numel() // columns, columns)]
    return blocks


def _instructed(module: torch.nn.Module) -> list[Block]:
    """Return the blocks of a module whose flat weight is described by instructions of e3nn."""
    weight, instructions = getattr(module, "weight", None), getattr(module, "instructions", None)
    if instructions is None or not isinstance(weight, torch.nn.Parameter) or weight.dim() != 1:
        return []
    blocks: list[Block] = []
    offset = 0
    for instruction in instructions:
        if getattr(instruction, "has_weight", True):
            shape = tuple(int(extent) for extent in instruction.path_shape)
            blocks.append((offset, math.prod(shape[:-1]), shape[-1]))
            offset += math.prod(shape)
    return blocks


def _size(blocks: Iterable[Block]) -> int:
    return sum(rows * columns for _, rows, columns in blocks)


class SOAP(torch.optim.Optimizer):
    """The optimizer.  All of its state is tensors by parameter, so that a run resumes exactly.

    Args:
        params: Parameter groups; ``weight_decay`` is decoupled (W ← W − η λ W).
        blocks: Blocks of each parameter.
        lr: Learning rate η.
        betas: β₁ and β₂.
        eps: ε.
        update_every: Steps between two updates of the bases.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        blocks: Mapping[torch.nn.Parameter, Sequence[Block]],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-10,
        update_every: int = 10,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "update_every": update_every, "weight_decay": 0.0}
        super().__init__(params, defaults)
        self.blocks = dict(blocks)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that the parameters hold."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        blocks = self.blocks[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            numbers = sum(side**2 for _, *shape in blocks for side in _preconditioned(shape))
            state["covariance"] = parameter.new_zeros(numbers)
            state["basis"] = parameter.new_zeros(numbers)
        state["step"] += 1
        count = int(state["step"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        flat = {
            "weight": parameter.view(-1),
            "gradient": parameter.grad.reshape(-1),  # type: ignore[union-attr]
            "mean": state["exp_avg"].view(-1),
            "square": state["exp_avg_sq"].view(-1),
        }
        place = 0
        for offset, rows, columns in blocks:
            views = {key: v[offset : offset + rows * columns].view(rows, columns) for key, v in flat.items()}
            sides: dict[str, tuple[torch.Tensor, ...]] = {}
            for side, extent in (("left", rows), ("right", columns)):
                if _preconditioned((extent,)):
                    cut = slice(place, place + extent**2)
                    sides[side] = tuple(state[key][cut].view(extent, extent) for key in ("covariance", "basis"))
                    place += extent**2
            _step_of_block(views, sides, count, group)


def _preconditioned(shape: Iterable[int]) -> list[int]:
    """Return the sides that get a basis."""
    return [side for side in shape if 1 < side <= LARGEST_SIDE]


def _step_of_block(
    views: Mapping[str, torch.Tensor],
    sides: Mapping[str, tuple[torch.Tensor, ...]],
    count: int,
    group: Mapping[str, Any],
) -> None:
    """Update one block in place."""
    gradient, mean, square = views["gradient"], views["mean"], views["square"]
    first, second = group["betas"]
    for side, (covariance, basis) in sides.items():
        covariance.lerp_(gradient @ gradient.T if side == "left" else gradient.T @ gradient, 1 - second)
        if count == 1:
            basis.copy_(_eigenvectors(covariance))
    if count == 1 and sides:
        # one gradient has one direction of each side: the step along all others would be amplified rounding errors
        return
    mean.lerp_(gradient, 1 - first)
    left = sides["left"][1] if "left" in sides else None
    right = sides["right"][1] if "right" in sides else None
    square.lerp_(_rotated(gradient, left, right).square(), 1 - second)
    seen = count - 1 if sides else count
    size = (square / (1 - second**seen)).sqrt_().add_(group["eps"])
    # with β₁ = β₂ no component exceeds 1 in a fixed basis (Jensen), but V stays behind when the basis turns
    change = _rotated(mean, left, right).div_(1 - first**seen).div_(size).clamp_(-1.0, 1.0)
    change = change if left is None else left @ change
    change = change if right is None else change @ right.T
    views["weight"].sub_(change, alpha=group["lr"])
    if count % group["update_every"] == 0:
        for covariance, basis in sides.values():
            basis.copy_(torch.linalg.qr(covariance @ basis)[0])


def _eigenvectors(matrix: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors of a covariance; the axes where it is zero.

    In double precision: one gradient has few nonzero eigenvalues, and single precision may not converge on the rest.
    """
    size = matrix.abs().max()
    if size == 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.eigh(matrix.double() / size.double())[1].to(matrix.dtype)


def _rotated(matrix: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor:
    """Return Q_Lᵀ A Q_R, always a new tensor."""
    result = matrix.clone() if left is None else left.T @ matrix
    return result if right is None else result @ right
