"""Network and engine against a second implementation that shares no code with either."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk

from fieldflows.backends.base import load_model
from fieldflows.backends.mace_field._mace import o3
from fieldflows.backends.mace_field.derivatives import hessian, respond
from fieldflows.backends.mace_field.engine.engine import FastEngine, uncovered
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.mace_field.network import build_network
from fieldflows.errors import EvaluationError
from fieldflows.models import bundled_models
from tests.backends.mace_field.independent import Independent, coupling, spherical_harmonics
from tests.backends.mace_field.models import ALL, FIELD, HIDDEN, cubic, small_model, triclinic

CASES = {
    "L1": {"max_ell": 3},
    "L2": {"hidden_irreps": HIDDEN["L2"], "max_ell": 3},
    "L1-three-layers": {"num_interactions": 3},
    "L2-three-layers": {"num_interactions": 3, "hidden_irreps": HIDDEN["L2"]},
    "L1-third-order": {"correlation": 3},
    "L1-element-polarizability": {"element_polarizability": True},
    "L1-two-heads": {
        "heads": ["one", "two"],
        "scale": [2.8, 1.9],
        "shift": [0.1, -0.2],
        "atomic_energies": [[-1.5, -0.25, 3.75], [1.0, 2.0, 3.0]],
    },
    "L1-density": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
        "scale": 0.05,
    },
}
CRYSTALS = {"triclinic": triclinic, "rock salt": cubic, "cubic displaced": lambda: cubic(displaced=True)}
FIELDS = {"no field": np.zeros(3), "field": FIELD}


EVERYWHERE = ("L1", "L2")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("case", "crystal"),
    [(case, crystal) for case in CASES for crystal in CRYSTALS if crystal == "triclinic" or case in EVERYWHERE],
)
def test_every_observable_agrees(case, crystal, field):
    model = small_model(**CASES[case])
    network = model.network
    atoms, applied = CRYSTALS[crystal](), FIELDS[field]
    judge = Independent(network.state_dict(), network.config.model_dump())
    expected = judge.response(atoms.numbers, atoms.positions, atoms.cell, applied)
    found = model.evaluate(atoms, applied, ALL)
    for name in ALL:
        np.testing.assert_allclose(found.get(name), expected[name], rtol=0, atol=1e-12, err_msg=name)

    graph = model.graph(atoms)
    assert uncovered(network.config) is None
    evaluators = [network, FastEngine(network, order=2)]
    for evaluator in evaluators:
        at = torch.tensor(applied)[None]
        values = respond(evaluator, graph, ALL[:-1], at)
        values["hessian"] = hessian(evaluator, graph, at)[0]
        for name in ALL:
            value = values[name].numpy().reshape(expected[name].shape)
            label = f"{name} of {type(evaluator).__name__}"
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-12, err_msg=label)


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_is_not_of_zeros(case):
    response = small_model(**CASES[case]).evaluate(triclinic(), None, ALL)
    floors = {"forces": 0.1, "polarization": 1e-3, "born_effective_charges": 0.1, "polarizability": 1e-4}
    for name, floor in floors.items():
        assert np.abs(response.get(name)).max() > floor, name


def test_the_second_head_is_another_function():
    case = CASES["L1-two-heads"]
    model = small_model(**case)
    second = type(model)(model.network, model.metadata, sha256="0", head="two")
    atoms = triclinic()
    judge = Independent(model.network.state_dict(), model.network.config.model_dump())
    expected = judge.response(atoms.numbers, atoms.positions, atoms.cell, FIELD, head=1)
    found = second.evaluate(atoms, FIELD, ALL)
    for name in ALL:
        np.testing.assert_allclose(found.get(name), expected[name], rtol=0, atol=1e-12, err_msg=name)
    assert abs(found.energy - model.evaluate(atoms, FIELD, ALL).energy) > 0.1


def test_the_engine_refuses_positions_of_another_crystal():
    """It tabulates radial functions at the distances of the graph; with others it would be silently wrong."""
    model = small_model()
    graph = model.graph(triclinic())
    engine = FastEngine(model.network)
    moved = graph["positions"] + 0.01 * torch.arange(9.0, dtype=torch.float64).view(3, 3).sin()
    strain = 0.01 * torch.eye(3, dtype=torch.float64)[None]
    with pytest.raises(EvaluationError, match="not those of its graph"):
        engine(graph, positions=moved)
    with pytest.raises(EvaluationError, match="not those of its graph"):
        engine(graph, strain=strain)
    same, _ = engine(graph, positions=graph["positions"].clone(), strain=0 * strain)
    torch.testing.assert_close(same, model.network(graph)[0], rtol=0, atol=1e-12)
    assert abs(float(model.network(graph, positions=moved)[0] - same)) > 1e-5


def small_crystal(symbols):
    """A rock salt of two elements of a model with a displaced atom."""
    pair = "MgO" if {"Mg", "O"} <= set(symbols) else "".join(sorted(symbols)[:2])
    atoms = bulk(pair, "rocksalt", a=4.2112)
    atoms.positions[1] += [0.03, -0.02, 0.05]
    return atoms


def test_every_bundled_model_is_what_the_equation_says():
    """Shipped weights, real elements: one rock salt crystal with a displaced atom.

    A file in single precision holds the constants of the architecture (couplings, frequencies) rounded as well.  The
    exact comparison therefore takes its parameters into a network built in double precision; the rounding as such must
    stay below what single precision means.
    """
    if not bundled_models():
        pytest.skip("no model is bundled")
    for name in bundled_models():
        shipped = load_model(name)
        atoms = small_crystal(shipped.info.elements)
        config = shipped.network.config
        exact = build_network(config, seed=0)
        composition = {k: v for k, v in shipped.network.state_dict().items() if "composition_polarizability" in k}
        exact.load_state_dict({**dict(shipped.network.named_parameters()), **composition}, strict=False)
        judge = Independent(exact.state_dict(), config.model_dump())
        expected = judge.response(atoms.numbers, atoms.positions, atoms.cell, FIELD)
        for model, limit in ((MACEFieldModel(exact, shipped.metadata), 1e-10), (shipped, 1e-5)):
            found = model.evaluate(atoms, FIELD, ALL)
            for key in ALL:
                size = max(0.1, float(np.abs(expected[key]).max()))
                assert np.abs(found.get(key) - expected[key]).max() <= limit * size, (name, key, limit)


@pytest.mark.parametrize("degree", range(4))
def test_harmonics_of_the_judge_follow_the_convention_of_the_weights(degree):
    vectors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(degree))
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    ours = spherical_harmonics(unit, degree)
    torch.testing.assert_close(ours, o3.spherical_harmonics(degree, unit, True, "component"), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.square().sum(-1), torch.full((20,), 2.0 * degree + 1, dtype=torch.float64))


def test_couplings_of_the_judge_are_those_of_the_weights():
    degrees = [(a, b, c) for a in range(4) for b in range(4) for c in range(abs(a - b), min(a + b, 3) + 1)]
    even = [triple for triple in degrees if sum(triple) % 2 == 0]
    assert len(even) == 23
    for triple in even:
        table = o3.wigner_3j(*triple, dtype=torch.float64)
        torch.testing.assert_close(coupling(*triple), table, rtol=0, atol=1e-12)


def test_the_judge_refuses_what_it_does_not_cover():
    config = small_model().network.config.model_dump()
    with pytest.raises(ValueError, match="not covered"):
        Independent({}, {**config, "radial_type": "gaussian"})
    with pytest.raises(ValueError, match="natural parity"):
        Independent({}, {**config, "hidden_irreps": "4x0e + 4x1e"})
