"""Where files lie on a board: where a node that is started there looks for them first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.test_cli import HALF
from zpipe.bundle import load_bundle
from zpipe.deploy import layout
from zpipe.errors import ConfigError
from zpipe.security import make_keys
from zpipe.topology import Topology, load_topology


def write(folder: Path, bundle: str, security: object = None) -> Topology:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"bundle": bundle, "nodes": [{"rank": 0, "stages": [0, 1, 2, 3, 4]}], "security": security}
    (folder / "hall.yaml").write_text(yaml.safe_dump(plain))
    return load_topology(folder / "hall.yaml", read_keys=False)


@pytest.mark.parametrize(
    ("bundle", "place"),
    [
        ("digits", "engines/digits"),
        ("engines/digits", "engines/digits"),
        ("../engines/digits", "engines/digits"),
        ("./models/digits/manifest.json", "models/digits"),
        ("../digits", "digits"),
    ],
)
def test_a_node_on_a_board_finds_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str, place: str) -> None:
    here = write(tmp_path / "here", bundle)
    places = layout(here)
    assert (places.topology, places.bundle, places.keys) == ("topologies/hall.yaml", place, None)
    board = tmp_path / "board" / "zpipe"
    (board / "topologies").mkdir(parents=True)
    shutil.copytree(HALF, board / place)
    assert here.path is not None
    shutil.copy(here.path, board / places.topology)
    monkeypatch.chdir(board)
    there = load_topology(places.topology)
    assert there.digest() == here.digest()
    assert load_bundle(there.bundle, beside=there.path, verify=False).path.resolve() == board / place


@pytest.mark.parametrize(("folder", "place"), [("keys", "topologies/keys"), ("../secrets", "secrets"), (None, "topologies/keys")])
def test_a_node_on_a_board_finds_its_keys(tmp_path: Path, folder: str | None, place: str) -> None:
    here = write(tmp_path / "here", "digits", {"keys": folder} if folder else {})
    assert layout(here).keys == place
    make_keys(tmp_path / "board" / place, [0])
    (tmp_path / "board" / "topologies").mkdir(exist_ok=True)
    assert here.path is not None
    shutil.copy(here.path, tmp_path / "board" / "topologies")
    assert load_topology(tmp_path / "board" / "topologies" / "hall.yaml").security.keys


@pytest.mark.parametrize("bundle", ["/home/me/engines/digits", "../../digits", ".."])
def test_a_bundle_that_no_board_would_find_is_refused(tmp_path: Path, bundle: str) -> None:
    with pytest.raises(ConfigError, match=r"bundle: found .*, expected a name or a path"):
        layout(write(tmp_path, bundle))


@pytest.mark.parametrize("folder", ["/etc/zpipe/keys", "~/keys", "../../keys"])
def test_keys_that_no_board_would_find_are_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"security\.keys: found .*, expected a folder beside the topology"):
        layout(write(tmp_path, "digits", {"keys": folder}))
