"""Heads added to the architectures of the published foundations."""

from __future__ import annotations

import pytest
import torch

from fieldflows.backends.mace_field.graphs import build_graph
from fieldflows.backends.mace_field.heads import with_heads
from tests.backends.mace_field.backbones import CASES, network_of
from tests.backends.mace_field.models import triclinic

DEFAULT = ("like the 2025 foundations",)


@pytest.mark.parametrize(
    "case", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_each_head_gives_the_energies_of_the_one_it_started_from(case):
    old = network_of(case)
    first, last = old.config.heads[0], old.config.heads[-1]
    new = with_heads(old, {"from the last": last, "from the first": None})
    assert new.config.heads == ["from the last", "from the first", *old.config.heads]
    atoms, numbers, cutoff = triclinic(), old.config.atomic_numbers, old.config.r_max
    for number, head in enumerate(new.config.heads):
        origin = {"from the last": last, "from the first": first}.get(head, head)
        ours = new(build_graph(atoms, numbers, cutoff, new.dtype, number))
        theirs = old(build_graph(atoms, numbers, cutoff, old.dtype, old.config.heads.index(origin)))
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-12)
