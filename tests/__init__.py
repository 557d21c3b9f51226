"""Tests, laid out as the package is; a package of its own, so that no installed one of that name comes first."""
