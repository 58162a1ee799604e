"""Which code a recorded figure was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Figures themselves: a run writes here, and is no other code for it.
RESULTS = "bench/results"


def commit(tree: Path = ROOT) -> str:
    """The commit a checkout stands at, with `-dirty` where tracked files differ from it; "" outside of git.

    Recorded figures do not count: else every benchmark after the first of a series would look like one of changed code.
    """
    name = _git(tree, "describe", "--always")
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", f":(top,exclude){RESULTS}")
    return f"{name}-dirty" if changed else name


def _git(tree: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=False).stdout.strip()
