"""P_s as the integral of Born charges along a path, with the term of the strain.

Along a path with cells C(λ) and fractional coordinates x(λ), λ from 0 (nonpolar) to 1, the dipole of the cell μ = Ω P
changes by displacements and by strain, and so do the fractions f = μ C⁻¹ of the quanta:

    f′ = [ Σ_κ Z*_κ·(x′_κ C)  +  (∂μ/∂λ at fixed x)  −  μ C⁻¹ C′ ] C⁻¹

The first term is the displacements' share, the other two the strain's; these cancel for charges that move with the
lattice.  For one and the same model f(1) − f(0) = ∫ f′ dλ is an identity: it holds whether the model is right or wrong,
and tells whether derivatives and bookkeeping are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LinearPath:
    """Cells and coordinates that go linearly with λ, as :func:`fieldflows.physics.paths.build_path` makes them.

    Attributes:
        cells: (k, 3, 3) lattice vectors as rows, in Å, at equidistant λ from 0 to 1.
        fractional: (k, n, 3) fractional coordinates, not wrapped.
    """

    cells: FloatArray
    fractional: FloatArray

    @property
    def cell_slope(self) -> FloatArray:
        """(3, 3) dC/dλ in Å."""
        return np.asarray(self.cells[-1] - self.cells[0])

    @property
    def slope(self) -> FloatArray:
        """(n, 3) dx/dλ."""
        return np.asarray(self.fractional[-1] - self.fractional[0])

    @property
    def is_strained(self) -> bool:
        """Whether the cell changes along the path by more than rounding."""
        return bool(np.abs(self.cell_slope).max() > 1e-9)


def integrate_charges(
    path: LinearPath, charges: ArrayLike, dipoles: ArrayLike, dipole_slopes: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return the change of f that displacements make, and that of strain: (3,) and (3,), in quanta.

    The integrand is known at the frames; a cubic spline through it is integrated.

    Args:
        path: Cells and coordinates.
        charges: (k, n, 3, 3) Z* of each frame in e, first index polarization.
        dipoles: (k, 3) μ = Ω P of each frame, e Å.
        dipole_slopes: (k, 3) dμ/dλ at fixed fractional coordinates, e Å; zero for a path without strain.
    """
    from scipy.interpolate import CubicSpline

    inverses = np.linalg.inv(path.cells)
    velocities = np.einsum("nj,kji->kni", path.slope, path.cells)
    moved = np.einsum("knij,knj,kia->ka", np.asarray(charges, dtype=float), velocities, inverses)
    mu = np.asarray(dipoles, dtype=float)
    carried = np.einsum("ki,kij,jl->kl", mu, inverses, path.cell_slope)
    strained = np.einsum("ki,kia->ka", np.asarray(dipole_slopes, dtype=float) - carried, inverses)
    places = np.linspace(0.0, 1.0, len(path.cells))
    return tuple(np.asarray(CubicSpline(places, value).integrate(0.0, 1.0)) for value in (moved, strained))  # type: ignore[return-value]
