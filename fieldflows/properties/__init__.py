"""One file per property: a plan (what to evaluate) and an analysis (what it means)."""
