"""The one place where mace and e3nn are imported.

``import mace`` sets ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` for the whole process, which would switch off safe loading
for everybody else; e3nn 0.4.4 in turn reads its own constants with an unrestricted load and fails without it.  Both
are imported here with the variable set, and it is put back as it was found.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

import torch

_VARIABLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def contained_imports() -> Iterator[None]:
    """Put the loading switch of torch back as it was after the imports inside the block."""
    before = os.environ.get(_VARIABLE)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # mace warns, and prints, about optional accelerators that are not installed
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", message=f".*{_VARIABLE}.*")
            yield
    finally:
        logging.disable(disabled)
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


with contained_imports():
    import mace  # noqa: F401  (first: it sets the switch that e3nn 0.4.4 needs)
    from e3nn import get_optimization_defaults, o3, set_optimization_defaults
    from mace.modules import gate_dict, interaction_classes, readout_classes
    from mace.modules.models import ScaleShiftMACE

    from mace.tools.scatter import scatter_sum  # isort: skip

__all__ = [
    "ScaleShiftMACE",
    "contained_imports",
    "gate_dict",
    "interaction_classes",
    "module_construction",
    "o3",
    "readout_classes",
    "scatter_sum",
]


@contextlib.contextmanager
def module_construction(dtype: torch.dtype) -> Iterator[None]:
    """Build e3nn modules in ``dtype`` and as plain modules (no TorchScript), and restore both settings afterwards.

    Plain modules can be differentiated any number of times and need no profiling runs when shapes change.  A deep copy
    of one is scripted again by e3nn; build a network from its configuration and state instead.
    """
    default = torch.get_default_dtype()
    options = dict(get_optimization_defaults())
    torch.set_default_dtype(dtype)
    set_optimization_defaults(jit_script_fx=False)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        set_optimization_defaults(**options)
