"""Other models asked for the same spontaneous polarization: independent estimates, and their spread as the uncertainty.

∫ Z*·du of one and the same model is its own ΔP, which no model can contradict.  Born charges of another one can:

    σ = √( (1/m) Σ_j |P_j − mean P|² ),     P_j = (1/Ω) Σ_κ ½ [Z*_κ,j(polar) + Z*_κ,j(nonpolar)]·Δu_κ

over the m models, the first among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fieldflows.errors import EvaluationError
from fieldflows.properties.base import model_card
from fieldflows.properties.run import run_property
from fieldflows.properties.spontaneous_polarization import Nonpolar, SpontaneousPolarizationProperty
from fieldflows.schemas.common import make_flag
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import IndependentEstimate, SpontaneousPolarizationDocument

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel

FLAG = "models_disagree"


def with_independent_estimates(
    document: SpontaneousPolarizationDocument,
    settings_of: SpontaneousPolarizationProperty,
    models: Sequence[FieldModel],
) -> SpontaneousPolarizationDocument:
    """Return a document with P_s of other models by Born charges at the ends of its path, and the uncertainty.

    A model that does not know an element, or fails, is named in a flag.

    Args:
        document: P_s of the first model.
        settings_of: The property that made it.
        models: Other models.

    Raises:
        CapabilityError: If a model has no field response.
    """
    if not models:
        return document
    settings = settings_of.settings.model_copy(
        update={"n_frames": 2, "consistency": False, "energy": False, "match": "given", "unrelated": True}
    )
    prop = SpontaneousPolarizationProperty(settings, Nonpolar(document.nonpolar))
    found, flags = [], [flag for flag in document.flags if flag.code not in (FLAG, "no_independent")]
    for model in models:
        (outcome,) = run_property(prop, [document.structure], model)
        if isinstance(outcome, SpontaneousPolarizationDocument):
            distance = float(np.linalg.norm(np.subtract(outcome.ps_charges, document.ps_charges)))
            found.append(
                IndependentEstimate(
                    model=model_card(model), ps=outcome.ps_charges, ps_norm=outcome.ps_charges_norm, distance=distance
                )
            )
        elif isinstance(outcome, FailureDocument):
            flags.append(make_flag("no_independent", f"{model.info.name} gives no estimate: {outcome.message}"))
        else:
            raise EvaluationError(f"An estimate of {model.info.name} is a {type(outcome).__name__}.")
    values = np.array([document.ps_charges, *(item.ps for item in found)])
    spread = float(np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=1).mean())) if found else None
    limit = max(settings.least_disagreement, settings.max_disagreement * document.ps_charges_norm)
    status = document.status
    if spread is not None and spread > limit:
        message = f"Born charges of {len(values)} models give P_s that differ by {spread:.1f} µC/cm² (rms)."
        flags.append(make_flag(FLAG, message, spread, limit))
        status = "ambiguous" if status == "ok" else status
    norms = [item.ps_norm for item in found]
    changes = {
        "independent": tuple(found),
        "uncertainty": spread,
        "band_low": min([document.band_low, *norms]),
        "band_high": max([document.band_high, *norms]),
        "flags": tuple(flags),
        "status": status,
    }
    return document.model_copy(update=changes)
