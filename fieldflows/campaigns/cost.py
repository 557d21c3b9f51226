"""How long a crystal takes, before anything is computed: from its size and density alone.

With N atoms of a cell of volume Ω and the cut-off r_c, a crystal has about

    E = N · (4π/3) r_c³ N/Ω

neighbors (edges). On one core, a model of 128 channels in float64 needs about (docs/validation/speed.md)

    response       0.02 s + 0.14 ms · E
    Hessian        0.1 ms · E · 0.6 N        with symmetry; 3N products without
    relaxation     60 steps of 0.05 ms · E
    P_s            30 responses along the path

These are for cutting work into portions of about equal length; what is left is told from what was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldflows.campaigns.stages import Stage

RESPONSE_START, RESPONSE, HESSIAN, FORCE = 0.02, 1.4e-4, 1e-4, 5e-5
"""Seconds: for any crystal; for an edge; for an edge and a product with the Hessian; for an edge and a step."""

PRODUCTS = 0.6
"""Products with the Hessian for each atom, where symmetry is used; three without."""

RELAXATION_STEPS = 60
FRAMES = 30
"""Responses for a spontaneous polarization: ten frames, and two more for each where the cell changes."""

_FALLBACK_CUTOFF = 5.0


def edges(n_atoms: int, volume: float, cutoff: float) -> float:
    """Return the number of neighbors within a cut-off that a crystal of this density has.

    Args:
        n_atoms: Atoms of the cell.
        volume: Its volume in Å³.
        cutoff: In Å.
    """
    return n_atoms * 4.0 * math.pi / 3.0 * cutoff**3 * n_atoms / max(volume, 1e-6)


def predicted_seconds(stage: Stage, n_atoms: int, volume: float, speed: float = 1.0) -> float:
    """Return the seconds that a stage takes for a crystal, on one core.

    Args:
        stage: The stage.
        n_atoms: Atoms of the cell.
        volume: Its volume in Å³.
        speed: Speed of the worker relative to the model of the formulas above.
    """
    model, hessian = stage.infos()
    count = edges(n_atoms, volume, model.cutoff or _FALLBACK_CUTOFF)
    if stage.spec.task == "relax":
        return RELAXATION_STEPS * FORCE * count / speed
    seconds = RESPONSE_START + RESPONSE * count
    if stage.spec.task == "spontaneous_polarization":
        return FRAMES * seconds / speed
    if stage.extent == "ionic":
        other = count if hessian is None else edges(n_atoms, volume, hessian.cutoff or _FALLBACK_CUTOFF)
        settings: Any = getattr(stage.bind(), "settings", None)
        products = PRODUCTS if getattr(settings, "use_symmetry", True) else 3.0
        seconds += HESSIAN * other * max(products * n_atoms, 1.0)
    return seconds / speed
