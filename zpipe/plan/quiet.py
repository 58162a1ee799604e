"""What a solver leaves on standard output, kept from there: scipy 1.17's HiGHS prints a line of its debugging past every option."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

#: How the solver's own lines begin.
SOLVER = b"Highs"


@contextmanager
def solver_quiet() -> Iterator[None]:
    """Meanwhile the process's standard output goes to a file; then the lines that are not the solver's go where they belong."""
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 1)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)
            held.seek(0)
            others = b"".join(line for line in held if not line.startswith(SOLVER))
            while others:
                others = others[os.write(1, others) :]


def _flush() -> None:
    """Python's buffer and that of C, which a pipe fills and only the end of the process would empty."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
