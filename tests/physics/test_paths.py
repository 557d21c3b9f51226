"""Paths between crystals: closed-form shifts, the tables of space groups, pymatgen, and what may not change them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from fieldflows.backends.toy import ToyModel
from fieldflows.errors import PathError, SettingsError, StructureError
from fieldflows.physics.distortion import DistortionLimits, check_distances
from fieldflows.physics.paths import DistortionPath, build_path
from fieldflows.structures import as_structure
from fieldflows.testing.strategies import SEEDS
from fieldflows.testing.structures import alpha_quartz, random_crystal, random_rotation, wurtzite_zno
from tests.physics.lattices import Writing, write_down
from tests.physics.pairs import PAIRS, cubic

SHIFTS = {
    "BaTiO3": ("Ba", {"Ti": 0.014 * 4.036, "O": (-0.023 * 4.036, -0.014 * 4.036)}),
    "PbTiO3": ("Pb", {"Ti": 0.0377 * 4.156, "O": (0.1118 * 4.156, 0.1174 * 4.156)}),
    "LiNbO3": ("Nb", {"Li": (0.2787 - 0.25) * 13.8631, "O": (0.0633 - 1 / 12) * 13.8631}),
    "AlN": ("Al", {"N": (0.5 - 0.3814) * 5.0152}),
}
"""Shifts along the polar axis against the first element, in Å: published coordinates times c, sign open."""

GROUPS = {"BaTiO3": (221, 99, 6), "PbTiO3": (221, 99, 6), "LiNbO3": (167, 161, 2), "AlN": (194, 186, 2)}
"""Space groups of both ends, and the index of the subgroup: International Tables A1 (orders 48/8, 12/6, 24/12)."""


@cache
def path_of(name: str) -> DistortionPath:
    return build_path(*PAIRS[name]())


@pytest.mark.parametrize("name", PAIRS)
def test_shifts_are_the_published_ones(name):
    path = path_of(name)
    reference, expected = SHIFTS[name]
    symbols = np.array([site.specie.symbol for site in path.polar])
    shifts = path.distortion.displacements @ [0, 0, 1.0]
    shifts -= shifts[symbols == reference].mean()
    if name in ("LiNbO3", "AlN"):  # the axis may point either way: two domains of one crystal
        first = next(iter(expected))
        shifts *= np.sign(shifts[symbols == first].mean() * np.ravel(expected[first])[0])
    for symbol, values in expected.items():
        found = np.unique(shifts[symbols == symbol].round(6))
        np.testing.assert_allclose(found, np.unique(np.round(values, 6)), atol=2e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_groups_are_related(name):
    relation = path_of(name).relation
    assert (relation.nonpolar.number, relation.polar.number, relation.index) == GROUPS[name]
    assert relation.n_operations == relation.n_kept == relation.n_along
    assert relation.related
    assert path_of(name).warnings == ()


@pytest.mark.parametrize("name", PAIRS)
def test_ends_are_the_crystals_given(name):
    nonpolar, polar = PAIRS[name]()
    path = path_of(name)
    assert len(path) == 10
    np.testing.assert_array_equal(path.polar.lattice.matrix, polar.cell[:])
    np.testing.assert_allclose(path.polar.cart_coords, polar.positions, atol=1e-12)
    exact = StructureMatcher(ltol=1e-4, stol=1e-4, angle_tol=0.01, primitive_cell=True, scale=False)
    assert exact.fit(path.nonpolar, as_structure(nonpolar))
    assert not exact.fit(path.nonpolar, path.polar)


@pytest.mark.parametrize("name", PAIRS)
def test_frames_between_have_the_symmetry_of_the_polar_end(name):
    for frame in path_of(name).frames[1:-1:3]:
        assert SpacegroupAnalyzer(frame, symprec=1e-3).get_space_group_number() == GROUPS[name][1]


@pytest.mark.parametrize("name", PAIRS)
def test_frames_are_a_straight_line_without_rotation_or_shift(name):
    path = path_of(name)
    cells = np.array([frame.lattice.matrix for frame in path.frames])
    fractional = np.array([frame.frac_coords for frame in path.frames])
    for values in (cells, fractional):
        np.testing.assert_allclose(np.diff(values, n=2, axis=0), 0.0, atol=1e-12)
    stretch = np.linalg.inv(cells[0]) @ cells[-1]
    np.testing.assert_allclose(stretch, stretch.T, atol=1e-9)
    np.testing.assert_allclose((fractional[-1] - fractional[0]).mean(axis=0), 0.0, atol=1e-9)
    assert np.linalg.det(path.rotation) == pytest.approx(1.0)


@pytest.mark.parametrize("name", PAIRS)
def test_the_mapping_says_where_cell_and_atoms_come_from(name):
    nonpolar, polar = PAIRS[name]()
    mapping = path_of(name).mapping
    cell = mapping.transform @ nonpolar.cell[:] @ mapping.rotation.T
    np.testing.assert_allclose(cell, path_of(name).nonpolar.lattice.matrix, atol=1e-9)
    assert (nonpolar.numbers[mapping.sites] == polar.numbers).all()
    moved = nonpolar.positions[mapping.sites] @ mapping.rotation.T + mapping.translation
    # up to translations of the nonpolar lattice, which the mapped cell may be a supercell of
    steps = (path_of(name).nonpolar.cart_coords - moved) @ np.linalg.inv(nonpolar.cell[:] @ mapping.rotation.T)
    if name == "LiNbO3":  # the hexagonal cell is centred: thirds
        steps = steps * 3
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)


def test_more_frames_lie_on_the_same_line():
    coarse, fine = build_path(*PAIRS["PbTiO3"](), n_frames=4), build_path(*PAIRS["PbTiO3"](), n_frames=7)
    for k in range(4):
        np.testing.assert_allclose(coarse.frames[k].frac_coords, fine.frames[2 * k].frac_coords, atol=1e-12)
        np.testing.assert_allclose(coarse.frames[k].lattice.matrix, fine.frames[2 * k].lattice.matrix, atol=1e-12)


def test_given_order_is_plain_interpolation():
    nonpolar, polar = PAIRS["PbTiO3"]()
    path = build_path(nonpolar, polar, match="given")
    plain = as_structure(polar).interpolate(as_structure(nonpolar), nimages=9, interpolate_lattices=True)[::-1]
    for frame, other in zip(path.frames, plain, strict=True):
        np.testing.assert_allclose(frame.frac_coords, other.frac_coords, atol=1e-12)
        np.testing.assert_allclose(frame.lattice.matrix, other.lattice.matrix, atol=1e-12)
    np.testing.assert_allclose(np.sort(path.distortion.norms), np.sort(path_of("PbTiO3").distortion.norms), atol=1e-9)


WRITINGS = st.builds(
    Writing,
    seed=SEEDS,
    shears=st.integers(0, 2),
    left_handed=st.booleans(),
    scattered=st.booleans(),
    noise=st.just(0.0),
    strain=st.just(0.0),
)


def rewritten(atoms: Atoms, writing: Writing) -> Atoms:
    """The same crystal in another cell, frame, order, origin and choice of images."""
    rng = np.random.default_rng(writing.seed)
    result = write_down(atoms, writing)
    result = result[rng.permutation(len(result))]
    result.positions += rng.normal(size=3)
    return result


def invariants(path: DistortionPath) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacements, energies and |P| of the toy model along the path, all per cell of the path."""
    responses = ToyModel().evaluate(list(path.frames[::3]), observables=("energy", "polarization"))
    norms = [np.linalg.norm(response.polarization) for response in responses]
    return np.sort(path.distortion.norms), np.array([response.energy for response in responses]), np.array(norms)


@pytest.mark.parametrize("name", PAIRS)
@given(first=WRITINGS, second=WRITINGS)
@settings(max_examples=6, deadline=None)
def test_the_way_of_writing_changes_nothing(name, first, second):
    nonpolar, polar = PAIRS[name]()
    path = build_path(rewritten(nonpolar, first), rewritten(polar, second))
    for found, expected in zip(invariants(path), invariants(path_of(name)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert path.mapping.cost == pytest.approx(path_of(name).mapping.cost, abs=1e-7)
    assert path.relation.index == GROUPS[name][2]
    assert path.warnings == ()


@pytest.mark.parametrize("which", [0, 1])
def test_supercells(which):
    ends = list(PAIRS["BaTiO3"]())
    ends[which] = rewritten(ends[which].repeat((2, 1, 2)), Writing(seed=5, shears=1, noise=0.0, strain=0.0))
    path = build_path(*ends)
    norms = np.sort(path_of("BaTiO3").distortion.norms)
    np.testing.assert_allclose(np.sort(path.distortion.norms), np.repeat(norms, 4 if which else 1), atol=1e-9)
    assert path.relation.index == 6


def test_the_toy_polarization_starts_at_zero():
    for name in PAIRS:
        polarization = invariants(path_of(name))[2]
        assert polarization[0] < 1e-9
        assert (polarization[1:] > 1e-4).all()


# What is refused, and what is said about it.


def distorted(formula: str, lengths: list[float], shift: float) -> Atoms:
    scaled = np.array([[0, 0, 0], [0.5, 0.5, 0.5 + shift], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Atoms(formula, scaled_positions=scaled, cell=lengths, pbc=True)


@pytest.mark.parametrize(
    ("nonpolar", "polar", "message"),
    [
        (cubic("PbTiO3", 3.96), rewritten(cubic("PbTiO3", 3.96), Writing(seed=1, shears=1, noise=0, strain=0)),
         "same crystal"),
        (wurtzite_zno(), wurtzite_zno(), "same crystal"),
        (PAIRS["PbTiO3"]()[1], PAIRS["PbTiO3"]()[0], "nonpolar end has the polar point group 4mm"),
        (random_crystal(1), random_crystal(2), "nonpolar end has the polar point group 1 "),
        (cubic("PbTiO3", 3.96), distorted("PbTiO3", [4.1, 3.9, 3.8], 0.0), "point group mmm .* allows no polarization"),
        (cubic("PbTiO3", 3.96), PAIRS["BaTiO3"]()[1], "nonpolar end is TiPbO3, the polar one BaTiO3"),
        (cubic("BaTiO3", 5.2), PAIRS["BaTiO3"]()[1], "strain of 25 %"),
        (distorted("BaTiO3", [4.2, 3.8, 4.0], 0.0), PAIRS["BaTiO3"]()[1], "P4mm is no subgroup of Pmmm here: 4 of 8"),
        (alpha_quartz(), random_crystal(3, ("Si",) * 3 + ("O",) * 6, 12.5), "largest|moves atom|strain of 25 %"),
        (cubic("PbTiO3", 3.96), PAIRS["PbTiO3"]()[1].repeat((1, 1, 2))[:9], "polar one Ti2Pb2O5"),
    ],
)  # fmt: skip
def test_bad_pairs(nonpolar, polar, message):
    with pytest.raises(PathError, match=message) as caught:
        build_path(nonpolar, polar)
    assert caught.value.hint


def test_numbers_of_atoms_that_do_not_fit():
    nonpolar = cubic("PbTiO3", 3.96).repeat((1, 1, 2))
    nonpolar.positions[1, 0] += 0.1  # doubles the cell, and
    nonpolar.positions[6, 0] -= 0.1  # keeps an inversion
    with pytest.raises(PathError, match="has 10 atoms, that of the second as given 5, which is no multiple"):
        build_path(nonpolar, PAIRS["PbTiO3"]()[1])


def test_large_displacements_are_named_and_allowed_on_request():
    nonpolar, polar = PAIRS["AlN"]()
    with pytest.raises(PathError, match=r"moves atom \d \((Al|N)\) by 0\.30 Å; at most 0.2 Å is allowed"):
        build_path(nonpolar, polar, limits=DistortionLimits(displacement=0.2))
    with pytest.raises(PathError, match="strain of 15 %"):
        build_path(nonpolar, polar, limits=DistortionLimits(strain=0.15))
    order = [2, 3, 0, 1]  # aluminum first
    with pytest.raises(PathError, match=r"changes a length by 19\.8 %; at most 15 %"):
        build_path(nonpolar[order], polar, match="given", limits=DistortionLimits(strain=0.15, displacement=5))
    assert path_of("AlN").distortion.largest_strain == pytest.approx(5.0152 / 4.1876 - 1, abs=1e-6)


def test_unrelated_groups_on_request():
    path = build_path(distorted("BaTiO3", [4.2, 3.8, 4.0], 0.0), PAIRS["BaTiO3"]()[1], relation="warn")
    assert [warning.code for warning in path.warnings] == ["unrelated_groups"]
    assert path.relation.index is None


def test_another_order_of_atoms_is_noticed_when_the_order_is_taken_as_given():
    nonpolar, polar = PAIRS["PbTiO3"]()
    with pytest.raises(PathError, match="match='search'"):
        build_path(nonpolar[[0, 1, 3, 4, 2]], polar, match="given")
    with pytest.raises(PathError, match="different elements"):
        build_path(nonpolar[::-1], polar, match="given")
    flipped = polar.cell[:] * [[1], [1], [-1]]
    mirrored = Atoms(polar.numbers, scaled_positions=polar.get_scaled_positions(), cell=flipped, pbc=True)
    with pytest.raises(PathError, match="handedness"):
        build_path(nonpolar, mirrored, match="given")


def test_a_wrong_image_is_flagged():
    nonpolar, polar = PAIRS["PbTiO3"]()
    skewed = np.array([[1, 0, 0], [0, 1, 0], [0, 12, 1]])
    ends = [
        Atoms(end.numbers, positions=end.positions, cell=skewed @ end.cell[:], pbc=True) for end in (nonpolar, polar)
    ]
    wide = DistortionLimits(displacement=10.0, image=5.0)
    path = build_path(*ends, match="given", limits=wide, relation="warn")
    assert "wrong_image" in [warning.code for warning in path.warnings]
    warning = next(warning for warning in path.warnings if warning.code == "wrong_image")
    assert warning.value > warning.threshold
    assert build_path(*ends).distortion.largest == pytest.approx(path_of("PbTiO3").distortion.largest, abs=1e-9)


def test_half_way_to_an_image_is_flagged():
    path = build_path(*PAIRS["PbTiO3"](), limits=DistortionLimits(image=0.05))
    (warning,) = path.warnings
    assert warning.code == "image"
    assert warning.value == pytest.approx(path.distortion.largest / 4.156, abs=1e-6)


def test_atoms_that_come_close_on_the_way_are_flagged():
    frames = [Structure(Lattice.cubic(6.0), ["H", "H"], [[0, 0, 0], [x, 0, 0]]) for x in (0.2, 0.1, 0.2)]
    (warning,) = check_distances(frames, DistortionLimits())
    assert warning.code == "close_atoms"
    assert warning.value == pytest.approx(0.6)
    assert check_distances(frames[:1] * 3, DistortionLimits()) == []


def test_options_are_checked():
    pair = PAIRS["PbTiO3"]()
    with pytest.raises(SettingsError, match="1 frames"):
        build_path(*pair, n_frames=1)
    with pytest.raises(SettingsError, match="no way 'guess'"):
        build_path(*pair, match="guess")
    with pytest.raises(SettingsError, match="limit strain"):
        DistortionLimits(strain=-1)
    with pytest.raises(StructureError, match="the polar end"):
        build_path(pair[0], Atoms("Pb", pbc=False))


def test_identifiers_need_a_provider():
    shelf = dict(zip(("mp-1", "mp-2"), PAIRS["BaTiO3"](), strict=True))
    path = build_path("mp-1", "mp-2", provider=shelf.__getitem__)
    assert path.mapping.cost == pytest.approx(path_of("BaTiO3").mapping.cost)
    with pytest.raises(SettingsError, match="identifier 'mp-1'"):
        build_path("mp-1", shelf["mp-2"])


def test_noise_within_the_tolerance_changes_little():
    nonpolar, polar = PAIRS["PbTiO3"]()
    rotation = random_rotation(4)
    nonpolar.set_cell(nonpolar.cell[:] @ rotation.T, scale_atoms=True)
    nonpolar.rattle(1e-3, seed=1)
    path = build_path(nonpolar, polar)
    np.testing.assert_allclose(np.sort(path.distortion.norms), np.sort(path_of("PbTiO3").distortion.norms), atol=5e-3)
