"""A solver prints nothing, and nothing that others print is lost."""

from __future__ import annotations

import subprocess
import sys

#: Standard output is a pipe here, as in a program whose output somebody reads: C keeps back what is printed to it.
SCRIPT = """
import ctypes, os
from zpipe.plan.quiet import solver_quiet
library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
print("before")
with solver_quiet():
    library.puts(b"HighsMipSolverData::something tmpSolver.run();")
    print("meanwhile")
    library.puts(b"from another library")
print("after", flush=True)
os.close(1)
with solver_quiet():
    os.write(2, b"without an output")
"""


def test_the_solvers_lines_are_dropped_and_others_kept() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert sorted(done.stdout.splitlines()) == ["after", "before", "from another library", "meanwhile"]
    assert done.stderr.startswith("without an output")
