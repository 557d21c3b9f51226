"""Screening campaigns: ten thousand crystals, a funnel of stages, any engine, nothing lost."""

from __future__ import annotations

from fieldflows.campaigns.campaign import Campaign
from fieldflows.campaigns.config import CampaignConfig

__all__ = ["Campaign", "CampaignConfig"]
