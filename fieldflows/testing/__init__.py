"""Public test support: the contract that every backend keeps, small crystals, Hypothesis strategies."""
