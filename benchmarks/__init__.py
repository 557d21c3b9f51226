"""Time per structure against a naive reference, in one run: ``make bench`` or ``python -m benchmarks``."""
