"""bench.made: which code a figure was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.made import commit


def test_recorded_figures_are_no_other_code_and_a_changed_file_is(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    figures, code = tmp_path / "bench" / "results" / "line.json", tmp_path / "code.py"
    figures.parent.mkdir(parents=True)
    figures.write_text("1")
    code.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    name = git("describe", "--always")
    assert commit(tmp_path) == name
    figures.write_text("2")
    assert commit(tmp_path) == name
    (tmp_path / "notes").write_text("untracked")
    assert commit(tmp_path / "bench") == name, "asked from a folder within"
    code.write_text("2")
    assert commit(tmp_path) == f"{name}-dirty"
