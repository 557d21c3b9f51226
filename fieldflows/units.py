"""Unit factors, every one derived from :mod:`scipy.constants`.

Internal units are eV, Å, e and V/Å (so that e·V/Å = eV/Å is a force).  A unit crosses the border once, in
the adapter that meets the foreign code, with a factor from this module.
"""

from __future__ import annotations

from math import pi

from scipy import constants as _c

EPSILON_VACUUM: float = _c.epsilon_0 / _c.e * _c.angstrom
"""Vacuum permittivity ε_vac in e V⁻¹ Å⁻¹ (0.00552634...)."""

E_PER_A2_TO_UC_PER_CM2: float = _c.e / _c.angstrom**2 * 1e6 * 1e-4
"""Polarization: e Å⁻² to µC cm⁻² (1602.176634)."""

EV_PER_A3_TO_GPA: float = _c.e / _c.angstrom**3 * 1e-9
"""Stress: eV Å⁻³ to GPa (160.21766)."""

VASP_KBAR_TO_EV_PER_A3: float = -0.1 / EV_PER_A3_TO_GPA
"""Stress: VASP's kbar, with VASP's sign, to eV Å⁻³ with the ASE sign."""

V_PER_A_TO_MV_PER_CM: float = 100.0
"""Electric field: V Å⁻¹ to MV cm⁻¹."""

SQRT_EV_PER_A2_AMU_TO_THZ: float = (_c.e / _c.angstrom**2 / _c.atomic_mass) ** 0.5 / (2 * pi) * 1e-12
"""Frequency ν = ω/2π: √(eV Å⁻² amu⁻¹) to THz (15.633302)."""

THZ_TO_INVERSE_CM: float = 1e12 / _c.c * 1e-2
"""Frequency: THz to cm⁻¹ (33.35641)."""

E_TO_DEBYE_PER_A: float = _c.e * _c.c * 1e21 * _c.angstrom
"""Charge: e to D Å⁻¹ (4.80320)."""

POLARIZABILITY_GAUSSIAN_TO_INTERNAL: float = 4 * pi * EPSILON_VACUUM
"""Polarizability: Gaussian (ε∞ − 1)/(4π), dimensionless, to e V⁻¹ Å⁻¹ (0.0694461)."""
