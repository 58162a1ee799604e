"""Notes of where this machine's pipelines are: left, found, and not believed when they are old or somebody else's."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import zpipe
from tests.runtime.mesh import run, topology
from zpipe.runtime import whereabouts
from zpipe.runtime.whereabouts import Whereabouts, find, noted

PLACE = {0: "127.0.0.1:40000", 1: "127.0.0.1:40002"}
OTHER = {0: "127.0.0.1:50000", 1: "127.0.0.1:50002"}
LINE = topology([[0], [1, 2, 3, 4]])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "zpipe"


def test_a_pipeline_is_found_as_long_as_it_runs_the_latest_first(folder: Path) -> None:
    assert find(LINE) is None
    with noted(LINE, PLACE):
        assert find(LINE) == Whereabouts(PLACE, LINE.digest())
        assert find(replace(LINE, name="another")) is None
        with noted(LINE, OTHER):
            late = max(folder.iterdir(), key=lambda file: json.loads(file.read_text())["addresses"]["0"])
            os.utime(late, ns=(2**62, 2**62))  # a clock's grain may be coarser than this test
            assert find(LINE) == Whereabouts(OTHER, LINE.digest())
        assert find(LINE) == Whereabouts(PLACE, LINE.digest())
    assert find(LINE) is None
    assert list(folder.iterdir()) == []


def test_what_runs_is_told_the_latest_first_and_each_once(folder: Path) -> None:
    assert whereabouts.running() == []
    other = replace(LINE, name="another")
    with noted(LINE, PLACE), noted(LINE, OTHER), noted(other, PLACE):
        late = max(folder.iterdir(), key=lambda file: json.loads(file.read_text())["topology"] == "another")
        os.utime(late, ns=(2**62, 2**62))
        assert whereabouts.running() == ["another", LINE.name]
    assert whereabouts.running() == []


def test_options_change_the_digest_and_not_the_place(tmp_path: Path) -> None:
    loaded = replace(LINE, path=tmp_path / "line.yaml")
    changed = replace(loaded, nodes=tuple(replace(node, max_batch=2) for node in loaded.nodes))
    with noted(changed, PLACE):
        assert find(loaded) == Whereabouts(PLACE, changed.digest())
    assert changed.digest() != loaded.digest()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', '{"pid": 1, "started": 0.0, "addresses": {}, "digest": ""}'])
def test_a_note_of_a_process_that_died_or_of_nobody_goes(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "1-old.json").write_text(text)
    assert find(LINE) is None
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_a_folder_that_others_can_write_is_neither_read_nor_written(folder: Path) -> None:
    with noted(LINE, PLACE):
        folder.chmod(0o777)
        assert find(LINE) is None
        with noted(LINE, OTHER):
            assert len(list(folder.iterdir())) == 1
        folder.chmod(0o700)
        assert find(LINE) == Whereabouts(PLACE, LINE.digest())


def test_where_no_note_can_be_left_there_is_none(folder: Path) -> None:
    folder.write_text("a file where the folder shall be")
    with noted(LINE, PLACE):
        assert find(LINE) is None


def test_without_a_runtime_folder_it_is_among_the_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert whereabouts.folder().name.startswith("zpipe")


def test_a_local_pipeline_says_where_it_is() -> None:
    async def main() -> None:
        alone = topology([[0, 1, 2, 3, 4]])
        assert find(alone) is None
        async with zpipe.Pipeline.local(topology([[0], [1, 2, 3, 4]])) as pipeline:
            found = find(LINE)
            assert found is not None
            assert found.addresses == {node.rank: node.address for node in pipeline.topology.nodes}
        assert find(LINE) is None

    run(main)
