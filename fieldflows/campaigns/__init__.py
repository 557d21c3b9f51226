"""Campaigns: many thousand crystals, in chunks, on any engine."""
