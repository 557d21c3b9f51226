"""fieldflows: electric-field-aware interatomic potentials as high-throughput flows.

The public names below load on first use; importing the package imports neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "fieldflows.backends.base",
    "FieldModel": "fieldflows.backends.base",
    "ModelInfo": "fieldflows.backends.base",
    "Response": "fieldflows.backends.base",
    "FieldCalculator": "fieldflows.calculators",
    "DielectricMaker": "fieldflows.flows.screening",
    "Campaign": "fieldflows.campaigns.campaign",
    "CampaignMaker": "fieldflows.campaigns.maker",
    "ScreeningMaker": "fieldflows.campaigns.maker",
    "DatasetMaker": "fieldflows.flows.dataset",
    "FerroelectricDatasetMaker": "fieldflows.flows.ferroelectric_dataset",
    "MPDielectricDatasetMaker": "fieldflows.flows.mp_dataset",
    "TrainMaker": "fieldflows.flows.training",
    "TrainingFlowMaker": "fieldflows.flows.training",
    "EvaluateMaker": "fieldflows.flows.evaluation",
    "SpontaneousPolarizationMaker": "fieldflows.flows.ferroelectric",
    "MatbenchDielectricMaker": "fieldflows.flows.matbench",
    "FieldflowsError": "fieldflows.errors",
}

__all__ = [
    "Campaign",
    "CampaignMaker",
    "DatasetMaker",
    "DielectricMaker",
    "EvaluateMaker",
    "FerroelectricDatasetMaker",
    "FieldCalculator",
    "FieldModel",
    "FieldflowsError",
    "MPDielectricDatasetMaker",
    "MatbenchDielectricMaker",
    "ModelInfo",
    "Response",
    "ScreeningMaker",
    "SpontaneousPolarizationMaker",
    "TrainMaker",
    "TrainingFlowMaker",
    "__version__",
    "load_model",
]

if TYPE_CHECKING:
    from fieldflows.backends.base import FieldModel, ModelInfo, Response, load_model
    from fieldflows.calculators import FieldCalculator
    from fieldflows.campaigns.campaign import Campaign
    from fieldflows.campaigns.maker import CampaignMaker, ScreeningMaker
    from fieldflows.errors import FieldflowsError
    from fieldflows.flows.dataset import DatasetMaker
    from fieldflows.flows.evaluation import EvaluateMaker
    from fieldflows.flows.ferroelectric import SpontaneousPolarizationMaker
    from fieldflows.flows.ferroelectric_dataset import FerroelectricDatasetMaker
    from fieldflows.flows.matbench import MatbenchDielectricMaker
    from fieldflows.flows.mp_dataset import MPDielectricDatasetMaker
    from fieldflows.flows.screening import DielectricMaker
    from fieldflows.flows.training import TrainingFlowMaker, TrainMaker


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fieldflows' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
