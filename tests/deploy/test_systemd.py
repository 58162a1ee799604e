"""Units as systemd reads them: `systemd-analyze verify` says of each that it understands every line and finds the program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_cli import Refused, refused
from zpipe.deploy import Layout, Unit, UnitOptions, layout, render_unit
from zpipe.deploy.systemd import Scope
from zpipe.errors import ConfigError
from zpipe.topology import load_topology

__all__ = ["refused"]  # a fixture

ANALYZE = shutil.which("systemd-analyze")
PLACES = Layout("topologies/line2.yaml", "engines/digits-mobilenetv2", None, "zpipe-line2@.service")


def complaints(unit: Unit, folder: Path, scope: Scope) -> list[str]:
    """What systemd has to say about the unit of rank 1."""
    if ANALYZE is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    file = folder / unit.name.replace("@", "@1")
    file.write_text(unit.text, encoding="utf-8")
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    command = [ANALYZE, "verify", f"--{scope}", "--man=no", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines(), *([f"exit code {done.returncode}"] if done.returncode else [])]


def program(folder: Path) -> Path:
    """A zpipe where a board's folder has it."""
    file = folder / ".venv" / "bin" / "zpipe"
    file.parent.mkdir(parents=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("scope", ["user", "system"])
def test_systemd_understands_the_unit_and_finds_its_program(tmp_path: Path, scope: Scope) -> None:
    folder = tmp_path / "100 %h of $HOME"
    options = UnitOptions(scope=scope, folder=str(folder), user="daemon" if scope == "system" else "", arguments=("--insecure",))
    program(folder)
    assert complaints(render_unit("line 2 %i\n", PLACES, options), tmp_path, scope) == []


def test_systemd_says_where_it_does_not_find_the_program(tmp_path: Path) -> None:
    unit = render_unit("line2", PLACES, UnitOptions(scope="system", folder=str(tmp_path / "100 %h")))
    missing, *_ = complaints(unit, tmp_path, "system")
    assert f"Command {tmp_path}/100 %h/.venv/bin/zpipe is not executable" in missing


def test_a_folder_of_a_user_unit_is_meant_from_the_home(tmp_path: Path) -> None:
    program(tmp_path / "my zpipe")
    unit = render_unit("line2", PLACES, UnitOptions(folder="my zpipe"))
    assert unit.folder == "~/my zpipe"
    assert "WorkingDirectory=%h/my zpipe\n" in unit.text
    # The manager's home is the account's, not $HOME, so where tests run without one of their own it is not looked for.
    assert 'ExecStart="%h/my zpipe/.venv/bin/zpipe" node --rank %i --topology topologies/line2.yaml\n' in unit.text


def test_a_unit_lets_a_node_drain_and_comes_back_for_ever() -> None:
    from zpipe.runtime.node import DRAIN_SECONDS

    lines = dict(line.partition("=")[::2] for line in render_unit("line2", PLACES, UnitOptions()).text.splitlines() if "=" in line)
    assert int(lines["TimeoutStopSec"]) > DRAIN_SECONDS
    assert lines["KillMode"] == "mixed"
    assert (lines["Restart"], lines["StartLimitIntervalSec"], lines["LimitNOFILE"]) == ("on-failure", "0", "65536")


@pytest.mark.parametrize("scope", ["user", "system"])
def test_nothing_in_a_unit_hides_a_gpu(scope: Scope) -> None:
    text = render_unit("line2", PLACES, UnitOptions(scope=scope)).text
    settings = {line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")}
    hiding = {
        "PrivateDevices",
        "DevicePolicy",
        "DeviceAllow",
        "ProtectClock",
        "MemoryDenyWriteExecute",
        "PrivateTmp",
        "PrivateUsers",
    }
    assert settings.isdisjoint(hiding)
    if scope == "user":  # there `nvidia-modprobe` can only be run by the node itself
        assert "NoNewPrivileges" not in settings


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (UnitOptions(scope="system", folder="zpipe"), "--dir: found 'zpipe', expected a path from / on"),
        (UnitOptions(folder="/a\nExecStart=/bin/sh"), "--dir: found "),
        (UnitOptions(program="/a\\"), "--program: found "),
        (UnitOptions(folder='/quo"ted'), "--dir: found "),
        (UnitOptions(user="nano"), "--user: found nano for a user unit"),
        (UnitOptions(scope="system", user="a b"), "--user: found 'a b'"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused(options: UnitOptions, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        render_unit("line2", PLACES, options)
    assert str(error.value).startswith(found)


def test_a_name_that_systemd_does_not_take_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "my line@home.yaml"
    file.write_text(Path("topologies/line2.yaml").read_text())
    assert layout(load_topology(file)).unit == "zpipe-my-line-home@.service"
    assert layout(load_topology(file)).instance(3) == "zpipe-my-line-home@3.service"


def test_deploy_writes_a_unit_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from zpipe.cli import cli

    printed = CliRunner().invoke(cli, ["deploy", "--topology", "line2.yaml"])
    assert printed.stdout == render_unit("line2", PLACES, UnitOptions()).text
    done = CliRunner().invoke(
        cli, ["deploy", "--topology", "line2.yaml", "--system", "--user", "zpipe", "--out", str(tmp_path / "units")]
    )
    assert done.exit_code == 0
    unit = tmp_path / "units" / "zpipe-line2@.service"
    assert unit.read_text() == render_unit("line2", PLACES, UnitOptions(scope="system", user="zpipe")).text
    assert (
        "  sudo systemctl enable --now zpipe-line2@1.service      # on the board of rank 1, at 127.0.0.1"
        in done.stdout.splitlines()
    )
    assert "zpipe-line2@0" not in done.stdout  # a source


def test_deploy_refuses_in_one_line(refused: Refused) -> None:
    assert refused("deploy", "--topology", "line2.yaml", "--system", "--dir", "zpipe").startswith("--dir: found 'zpipe'")
