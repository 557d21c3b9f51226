"""The Matbench task ``matbench_dielectric``: predictions by fold, what the model has seen, scores and report."""
