"""`zpipe keygen`, and the other commands on a topology with keys or open to a network."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.test_cli import FEW, HALF, Refused, Running, completed, free_ports, refused
from zpipe import cli
from zpipe.topology import load_topology

__all__ = ["refused"]  # a fixture

Keygen = Callable[..., list[str]]


def boards(folder: Path, *, bind: str = "", security: object = None) -> Path:
    """Two boards at ports of this machine."""
    nodes = [
        {"rank": rank, "stages": stages, "address": f"127.0.0.1:{port}", "bind": bind}
        for rank, (stages, port) in enumerate(zip(([0], [1, 2, 3, 4]), free_ports(2), strict=True))
    ]
    plain = {"bundle": str(HALF), "nodes": nodes, "links": "line", "security": security}
    file = folder / "boards.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return file


@pytest.fixture
def keygen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keygen:
    """Runs `zpipe keygen` in this process; the lines it prints."""

    def call(*arguments: str | Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["zpipe", "keygen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out.splitlines()

    return call


def test_keygen_says_what_to_do_next_and_overwrites_nothing(keygen: Keygen, refused: Refused, tmp_path: Path) -> None:
    file = boards(tmp_path)
    first, add, copy, warning = keygen("--topology", file)
    assert first == f"{tmp_path / 'keys'}: made public.keys and the secret of rank 0, 1 (nodeRANK.secret)"
    assert add == f"add to {file}:  security: {{keys: keys}}"
    assert copy.startswith("copy to every board: the topology and public.keys")
    assert warning.startswith("whoever has a secret is that node")
    file.write_text(file.read_text().replace("security: null", add.partition(":  ")[2]), encoding="utf-8")
    assert len(load_topology(file).security.keys) == 2
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "keys" / "node1.secret").stat().st_mode) == 0o600
    again = refused("keygen", "--topology", file)
    assert "found a key of rank 0 already, expected none: keys are never overwritten" in again


def test_keygen_for_one_rank_prints_the_line_for_the_others(keygen: Keygen, refused: Refused, tmp_path: Path) -> None:
    file = boards(tmp_path, security={"keys": "here"})
    made, every, line, _ = keygen("--topology", file, "--rank", "1")
    assert made.startswith(f"{tmp_path / 'here'}: made public.keys and the secret of rank 1 ")
    assert every.startswith("every board needs these lines in its public.keys")
    assert line in (tmp_path / "here" / "public.keys").read_text().splitlines()
    assert keygen("--topology", file, "--rank", "0")
    assert load_topology(file).key_of(1) == line.split()[1]
    wrong = refused("keygen", "--topology", file, "--rank", "5", "--out", tmp_path / "other")
    assert "found rank 5, expected one of 0 to 1" in wrong


@pytest.mark.parametrize("command", [("node", "--rank", "1"), ("bench", "--attach", *FEW)], ids=["node", "bench"])
def test_open_address_is_refused_in_one_line(refused: Refused, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = boards(tmp_path, bind="0.0.0.0")
    line = refused(*command, "--topology", file)
    assert line.startswith(f"{file}: rank {1 if command[0] == 'node' else 0} would listen at 0.0.0.0:")
    assert "`zpipe keygen" in line
    assert "--insecure" in line


@pytest.mark.parametrize("way", ["keys", "--insecure", "security: none"])
def test_nodes_by_hand_at_open_addresses(keygen: Keygen, tmp_path: Path, way: str) -> None:
    security = {"keys": {"keys": "keys"}, "security: none": "none"}.get(way)
    file = boards(tmp_path, bind="0.0.0.0", security=security)
    if way == "keys":
        keygen("--topology", file)
    flag = ["--insecure"] if way == "--insecure" else []
    with Running("node", "--rank", "1", "--topology", file, *flag) as node:
        node.line("node 1 serves stage 1, 2, 3, 4")
        bench = completed("bench", "--attach", *FEW, "--topology", file, *flag)
        assert bench.process.returncode == 0, bench.err
        assert "20 samples" in "".join(bench.out)
        node.process.send_signal(signal.SIGINT)
        assert node.ended() == 0
        assert node.err == []


def test_secret_that_others_can_read_is_refused_in_one_line(keygen: Keygen, refused: Refused, tmp_path: Path) -> None:
    file = boards(tmp_path, security={"keys": "keys"})
    keygen("--topology", file)
    secret = tmp_path / "keys" / "node1.secret"
    secret.chmod(0o644)
    line = refused("node", "--rank", "1", "--topology", file)
    assert line.endswith(f"expected a secret nobody else can read; chmod 600 {secret}")
