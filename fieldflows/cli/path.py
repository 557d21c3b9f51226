"""``fieldflows path``: the path from a nonpolar to a polar crystal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldflows.cli.options import JsonOption

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.physics.paths import DistortionPath


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("path")(path)


def path(
    nonpolar: Annotated[
        str, typer.Argument(help="Nonpolar end: a file (file#2 for its third structure), or an id such as mp-2998.")
    ],
    polar: Annotated[str, typer.Argument(help="Polar end; its cell and order of atoms are those of the path.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Extended XYZ file for the frames, nonpolar end first.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Frames, both ends included.", min=2)] = 10,
    match: Annotated[
        str, typer.Option("--match", help="search for cells and sites that belong together, or take them as given.")
    ] = "search",
    max_displacement: Annotated[
        float, typer.Option("--max-displacement", help="Largest displacement of an atom in Å.")
    ] = 1.5,
    max_strain: Annotated[float, typer.Option("--max-strain", help="Largest relative change of a length.")] = 0.25,
    symprec: Annotated[float, typer.Option("--symprec", help="Tolerance of space groups in Å.")] = 0.01,
    unrelated: Annotated[
        bool, typer.Option("--unrelated", help="Accept a polar end whose space group is no subgroup; it is flagged.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Match two crystals, check that a small distortion makes the one of the other, and interpolate."""
    from fieldflows.errors import SettingsError
    from fieldflows.physics.distortion import DistortionLimits, Match
    from fieldflows.physics.paths import build_path

    if out is not None and out.exists() and not force:
        raise SettingsError(f"{out} exists already.", "Choose another name, or allow overwriting (--force).")
    if match not in ("search", "given"):
        raise SettingsError(f"--match {match!r} is unknown.", "Known: given, search.")
    way: Match = "given" if match == "given" else "search"
    limits = DistortionLimits(displacement=max_displacement, strain=max_strain)
    found = build_path(
        _end(nonpolar), _end(polar), frames, way, limits=limits, symprec=symprec,
        relation="warn" if unrelated else "require",
    )  # fmt: skip
    if out is not None:
        _write(found, out)
    if as_json:
        from fieldflows.cli.output import print_json

        print_json(_summary(found, out))
    else:
        _show(found, out)


def _end(text: str) -> Atoms:
    """Return the crystal that a file or an identifier names."""
    from fieldflows.jobs.structures import named_structure
    from fieldflows.structures import as_atoms

    return as_atoms(named_structure(text).structure)


def _write(found: DistortionPath, out: Path) -> None:
    import io

    from fieldflows.artifacts import replacing
    from fieldflows.datasets.extxyz import RawFrame, write_extxyz
    from fieldflows.structures import as_atoms

    raws = []
    for k, atoms in enumerate(map(as_atoms, found.frames)):
        info = {"path_index": k, "path_length": len(found)}
        raws.append(RawFrame(atoms.numbers, atoms.positions, atoms.cell[:], atoms.pbc, info))
    text = io.StringIO()
    write_extxyz(text, raws)
    with replacing(out) as handle:
        handle.write(text.getvalue().encode())


def _summary(found: DistortionPath, out: Path | None) -> dict[str, Any]:
    relation, distortion, mapping = found.relation, found.distortion, found.mapping
    return {
        "formula": found.polar.composition.reduced_formula,
        "n_frames": len(found),
        "n_atoms": len(found.polar),
        "nonpolar_spacegroup": relation.nonpolar.symbol,
        "polar_spacegroup": relation.polar.symbol,
        "subgroup_index": relation.index,
        "largest_displacement_angstrom": distortion.largest,
        "root_mean_square_displacement_angstrom": distortion.root_mean_square,
        "displacements_angstrom": distortion.displacements.tolist(),
        "largest_strain": distortion.largest_strain,
        "strain": distortion.strain.tolist(),
        "transform": mapping.transform.tolist(),
        "rotation": mapping.rotation.tolist(),
        "translation_angstrom": mapping.translation.tolist(),
        "sites": mapping.sites.tolist(),
        "warnings": [vars(item) for item in found.warnings],
        "file": None if out is None else str(out),
    }


def _show(found: DistortionPath, out: Path | None) -> None:
    from fieldflows.cli.output import console

    relation, distortion = found.relation, found.distortion
    screen = console()
    screen.print(
        f"{found.polar.composition.reduced_formula}: {relation.nonpolar.symbol} ({relation.nonpolar.number}) to "
        f"{relation.polar.symbol} ({relation.polar.number})"
        + (f", subgroup of index {relation.index}" if relation.index else ""),
        markup=False,
    )
    screen.print(
        f"largest displacement {distortion.largest:.3f} Å, root mean square {distortion.root_mean_square:.3f} Å, "
        f"largest change of a length {100 * distortion.largest_strain:.2f} %",
        markup=False,
        soft_wrap=True,
    )
    for item in found.warnings:
        screen.print(f"Warning: {item.message}.", markup=False, soft_wrap=True)
    where = f" in {out}" if out is not None else "; --out writes them to a file"
    screen.print(f"{len(found)} frames of {len(found.polar)} atoms{where}", markup=False, soft_wrap=True)
