"""What holds for every test: numerical libraries run on one thread.

Several threads per process make tiny models slower, by a factor of ten and more on a busy machine.  The variables
must be set before torch and numpy load, hence not in a fixture.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
