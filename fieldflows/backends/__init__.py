"""The models: each backend answers the same questions (:mod:`fieldflows.backends.base`)."""
