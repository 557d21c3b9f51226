"""Well-known crystals next to published values: what ``fieldflows demo`` computes, compares and draws."""
