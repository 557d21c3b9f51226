"""Public test support: the contract of every backend, small crystals, Hypothesis strategies, a MongoDB in memory."""
