"""The public contract of backends, held by networks with features up to degree 1 and 2."""

from __future__ import annotations

import pytest

from fieldflows.testing.contract import FieldModelContract
from tests.backends.mace_field.models import HIDDEN, small_model


@pytest.mark.slow
class TestDegreeOne(FieldModelContract):
    symbols = ("Na", "O", "O", "Ti")

    def make_model(self):
        return small_model()


class TestDegreeTwo(FieldModelContract):
    symbols = ("Na", "O", "O", "Ti")

    def make_model(self):
        return small_model(hidden_irreps=HIDDEN["L2"], element_polarizability=True)
