"""Boards behind a real sshd: what is brought there, what runs there, and what is said of one that cannot be reached.

`zpipe` on a board is a stand-in that speaks like it, where nothing of a node's own work matters, and so is `systemctl`. Every
question to a board is a dozen processes, so what does not have to be known at once is marked slow.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml

from tests.fleet.sshd import Board, Boards, me, skip_without_sshd
from tests.test_cli import HALF, ROOT, free_ports
from zpipe import __version__, cli
from zpipe.bundle import file_digest, load_bundle
from zpipe.cli.running import progress_shown
from zpipe.fleet.connection import CHUNK_BYTES
from zpipe.security import make_keys

#: Code, standard output, standard error of a command that ran in this process.
Called = tuple[int, str, str]
Zpipe = Callable[..., Called]
PROGRESS = re.compile(r"pushing to \d boards?( \d+ %)?")

_STAND_IN = """#!/bin/sh
if [ "$1" = --version ]; then echo "zpipe, version {version}"; exit; fi
trap 'echo "node $3 stopped: done"; kill $!; exit 0' TERM
echo "node $3 serves stage 1 of $PWD/$5"
sleep 1000 &
wait
"""
_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
    mkdir -p "$4/bin"
    for each in python pip; do printf '#!/bin/sh\necho "$@" >> "$HOME/pip.log"\n' > "$4/bin/$each"; done
    printf '#!/bin/sh\necho zpipe, version 9.9\n' > "$4/bin/zpipe"
    chmod +x "$4/bin"/*
esac
"""
_SYSTEMCTL = """#!/bin/sh
# A stand-in for the user's systemd: it has the unit of line2, and writes down what it was told.
[ "$1" = --user ] || exit 1
shift
echo "$@" >> "$HOME/systemctl.log"
case "$1" in
start | stop) echo "$1" > "$HOME/unit" ;;
show)
    case "$4" in
    ActiveState) if [ "$(cat "$HOME/unit" 2>/dev/null)" = start ]; then echo active; else echo inactive; fi ;;
    SubState) echo running ;;
    MainPID) echo $PPID ;;
    NRestarts) echo 2 ;;
    esac
esac
"""


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """A board, with a space in its home."""
    skip_without_sshd()
    made = Boards(tmp_path_factory.mktemp("a hall"))
    try:
        made.add().program("zpipe", _STAND_IN.format(version=__version__))
        yield made
    finally:
        made.close()


@pytest.fixture
def zpipe(hall: Boards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Zpipe:
    """Runs a command in this process, as somebody whose home is the hall's."""
    monkeypatch.setenv("HOME", str(hall.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def call(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["zpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def board(hall: Boards) -> Iterator[Board]:
    """The first board, with nothing on it."""
    board = hall.boards[0]
    yield board
    for file in board.home.glob("zpipe*/fleet/*.pid"):
        number = int(file.read_text().split()[0])
        if psutil.pid_exists(number):
            os.killpg(number, signal.SIGKILL)
    for folder in board.home.glob("zpipe*"):
        shutil.rmtree(folder)


@pytest.fixture
def place(hall: Boards, tmp_path: Path) -> tuple[Path, str]:
    """A line of three with keys and a bundle of its own, and the host of rank 1."""
    copy_bundle(tmp_path / "engines" / "half")
    nodes = [
        {"rank": rank, "stages": stages, "address": f"127.0.0.1:{port}"}
        for rank, (stages, port) in enumerate(zip(([0], [1, 2], [3, 4]), free_ports(3), strict=True))
    ]
    file = tmp_path / "topologies" / "line 3.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({"bundle": "half", "nodes": nodes, "links": "line", "security": {"keys": "keys"}}))
    make_keys(file.parent / "keys", range(3))
    return file, f"1={me()}@127.0.0.1:{hall.boards[0].port}"


def copy_bundle(folder: Path) -> None:
    """The stages alone: what a push has to carry without need takes time."""
    folder.mkdir(parents=True)
    manifest = json.loads((HALF / "manifest.json").read_text())
    manifest |= {"evaluation": None, "replay": None, "bottleneck": None, "calibration": None, "accuracy_table": None}
    stages = [stage["file"] for stage in manifest["stages"]]
    manifest["digests"] = {name: manifest["digests"][name] for name in stages}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in stages:
        shutil.copy(HALF / name, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- push ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["push"], ["fleet", "status"]])
@pytest.mark.parametrize("folder", ["", "a\nb"])
def test_a_folder_whose_name_no_line_can_hold_is_refused(
    zpipe: Zpipe, board: Board, place: tuple[Path, str], words: list[str], folder: str
) -> None:
    file, host = place
    code, out, err = zpipe(*words, "--topology", file, "--dir", folder, host)
    assert (code, out) == (2, "")
    assert err.strip() == f"zpipe: --dir: found {folder!r}, expected a folder's path without line ends; choose another"
    assert not list(board.home.glob("a*"))


def test_push_brings_what_a_board_needs_and_no_other_ranks_secret(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    code, out, err = zpipe("push", "--topology", file, host)
    assert code == 0, err
    assert all(PROGRESS.fullmatch(line) for line in err.splitlines()), err
    there = contents(board.home / "zpipe")
    wanted = {f"engines/half/{name}": data for name, data in contents(file.parents[1] / "engines" / "half").items()}
    wanted |= {f"topologies/keys/{name}": (file.parent / "keys" / name).read_bytes() for name in ("public.keys", "node1.secret")}
    wanted |= {"topologies/line 3.yaml": file.read_bytes(), ".push.lock": b""}
    assert there == wanted
    keys = board.home / "zpipe" / "topologies" / "keys"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, keys / "node1.secret")] == [0o700, 0o600]
    assert f"rank 1 at {host.partition('=')[2]}: {len(wanted) - 1} files, " in out

    changed = file.read_text() + "# a word\n"
    file.write_text(changed)
    code, out, _ = zpipe("push", "--topology", file, host)
    assert (code, ": 1 files, " in out, f"{len(wanted) - 2} were there" in out) == (0, True, True), out
    assert (board.home / "zpipe" / "topologies" / "line 3.yaml").read_text() == changed


def test_push_goes_on_where_a_lost_connection_ended(
    zpipe: Zpipe, board: Board, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, host = place
    folder = board.home / "zpipe"
    bundle = file.parents[1] / "engines" / "half"
    shutil.copytree(bundle, folder / "engines" / "half")
    before = contents(folder)
    for stage in ("stage3.onnx", "stage4.onnx"):
        (bundle / stage).write_bytes((bundle / stage).read_bytes() + bytes(2 * CHUNK_BYTES))
    renew_digests(bundle)
    chunks = 0

    def told(self: progress_shown, line: str, fraction: float) -> None:
        nonlocal chunks
        chunks += fraction > 0.0
        if chunks == 6:
            board.cut()

    with monkeypatch.context() as patched:
        patched.setattr(progress_shown, "_tell", told)
        code, _, err = zpipe("push", "--topology", file, host)
    assert (code, len(err.splitlines())) == (1, 1), err
    assert contents(folder).items() >= before.items()  # a node that starts now starts from what was there
    (part,) = (folder / "engines").glob(".half.*.part")
    left = {partial.name[1:].removesuffix(".partial"): partial.stat().st_ino for partial in part.glob(".*.partial")}
    assert left
    (part / ".never.partial").touch()
    code, _, err = zpipe("push", "--topology", file, host)
    assert code == 0, err
    assert contents(folder / "engines" / "half") == contents(bundle)
    assert all((folder / "engines" / "half" / name).stat().st_ino == number for name, number in left.items())
    assert [path.name for path in (folder / "engines").iterdir()] == ["half"]


def renew_digests(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["digests"] = {name: file_digest(bundle / name) for name in manifest["digests"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_what_arrives_damaged_never_gets_its_name(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    """A partial file of the right length with other bytes: noticed by its digest, and sent whole."""
    file, host = place
    bundle = file.parents[1] / "engines" / "half"
    part = board.home / "zpipe" / "engines" / f".half.{load_bundle(bundle).digest[:12]}.part"
    part.mkdir(parents=True)
    size = (bundle / "stage4.onnx").stat().st_size
    assert size > CHUNK_BYTES  # else nothing of it is believed
    (part / ".stage4.onnx.partial").write_bytes(bytes(size))
    assert zpipe("push", "--topology", file, host)[0] == 0
    assert contents(board.home / "zpipe" / "engines" / "half") == contents(bundle)


def test_a_push_under_way_keeps_another_out(hall: Boards, zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    (board.home / "zpipe").mkdir()
    with (board.home / "zpipe" / ".push.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = zpipe("push", "--topology", file, host)
    assert (code, "another push is under way there" in err) == (1, True), err
    assert not (board.home / "zpipe" / "engines").exists()


def test_a_lock_that_no_push_holds_and_none_can_take_is_told_apart(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    lock = board.home / "zpipe" / ".push.lock"
    lock.mkdir(parents=True)
    code, _, err = zpipe("push", "--topology", file, host)
    assert (code, "cannot be locked there (" in err, "Is a directory); ssh -p" in err) == (1, True, True), err
    lock.rmdir()
    flock = board.program("flock", "#!/bin/sh\necho 'flock: 9: No locks available' >&2\nexit 71\n")
    code, _, err = zpipe("push", "--topology", file, host)
    flock.unlink()
    assert (code, ".push.lock' cannot be locked there (flock: 9: No locks available); ssh -p" in err) == (1, True), err


@pytest.mark.slow
def test_push_says_what_a_board_lacks(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    (board.home / "zpipe" / "topologies" / "keys").mkdir(parents=True)
    (board.home / "zpipe" / "topologies" / "keys" / "node0.secret").touch()
    other = board.program("other", "#!/bin/sh\necho zpipe, version 0.0.7\n")
    code, _, err = zpipe("push", "--topology", file, host, "--program", other)
    assert code == 0
    assert "topologies/keys has node0.secret, too, of ranks that are not this board's; remove them there" in err
    assert f"zpipe 0.0.7 runs there, {__version__} here" in err
    code, _, err = zpipe("push", "--topology", file, host, "--program", "nothing")
    assert (code, "no zpipe found there at nothing: push again with --install WHEEL (or --install zpipe==" in err) == (0, True), err
    (file.parent / "keys" / "node1.secret").unlink()
    (board.home / "zpipe" / "topologies" / "keys" / "node1.secret").unlink()
    code, _, err = zpipe("push", "--topology", file, host)
    assert (code, "the secret of rank 1 is neither here nor there" in err) == (1, True), err


def test_push_begins_nothing_that_has_no_room(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    full = board.program(
        "df", "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 9 1 1200 99% /'\n"
    )
    try:
        code, _, err = zpipe("push", "--topology", file, host)
    finally:
        full.unlink()
    assert (code, "1.2 MB are free in " in err) == (1, True), err
    assert not (board.home / "zpipe" / "engines").exists()


@pytest.mark.slow
def test_push_installs_a_wheel_once(zpipe: Zpipe, board: Board, place: tuple[Path, str], tmp_path: Path) -> None:
    """pip and the environment are stand-ins: what they would fetch is no affair of ours."""
    file, host = place
    wheel = tmp_path / "zpipe-9.9-py3-none-any.whl"
    code, _, err = zpipe("push", "--topology", file, host, "--install", wheel)
    assert (code, f"--install: found no file {wheel}, expected a wheel" in err) == (2, True)
    wheel.write_bytes(b"a wheel")
    python = board.program("python3", _PYTHON)
    try:
        installed = [zpipe("push", "--topology", file, host, "--install", wheel)[:2] for _ in range(2)]
        board.program("python3", '#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.10\nexit 1\n')
        shutil.rmtree(board.home / "zpipe" / ".venv")
        code, _, err = zpipe("push", "--topology", file, host, "--install", wheel)
    finally:
        python.unlink()
    assert [(code, "  zpipe 9.9 installed there" in out.splitlines()) for code, out in installed] == [(0, True), (0, False)]
    assert (board.home / "pip.log").read_text().splitlines() == [
        f"-m pip --disable-pip-version-check install -q {words} fleet/{wheel.name}"
        for words in ("--upgrade", "--no-deps --force-reinstall")
    ]
    assert (code, "Python 3.8.10 is there, expected 3.10 or later" in err) == (1, True), err


# ---- who cannot be reached -----------------------------------------------------------------------


def test_boards_that_cannot_be_reached_cost_a_line_each_and_hold_nobody_up(
    hall: Boards, zpipe: Zpipe, board: Board, place: tuple[Path, str]
) -> None:
    file, host = place
    unknown = hall.add(known=False)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        code, out, _ = zpipe(
            "fleet", "status", "--topology", file, host, f"2=127.0.0.1:{port}", "--timeout", "1", "--json"
        )  # fmt: skip
        first, second = json.loads(out)["nodes"]
        assert (code, first["state"], second["state"]) == (1, "stopped", "unknown")
        code, out, err = zpipe("fleet", "logs", "--topology", file, f"2=127.0.0.1:{port}", "--timeout", "0.1")
        assert (code, out, err.startswith("2: no answer within 0.1 s")) == (1, "", True)
        assert second["line"].startswith("no answer within 1 s: it is off, elsewhere, or a firewall drops what comes; ssh -p ")
    for where, why in (
        (f"2=127.0.0.1:{port}", "nobody listens at its SSH port"),
        (f"2={me()}@127.0.0.1:{unknown.port}", "its host key is unknown here, or another than the one in known_hosts"),
        (f"2=no-such-user@127.0.0.1:{board.port}", "it lets no-such-user not in with any key of yours; ssh-copy-id -p"),
        ("2=no-such-host.invalid", "it cannot be reached ("),
    ):
        code, out, err = zpipe("push", "--topology", file, where)
        (line,) = [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]
        assert (code, out, line.startswith(f"rank 2 at {where[2:]}: {why}")) == (1, "", True), line


def test_hosts_are_named_as_in_the_ssh_config(hall: Boards, zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, _ = place
    config = hall.home / ".ssh" / "config"
    config.write_text(f"Host orin1\n HostName 127.0.0.1\n Port {board.port}\n User {me()}\n")
    try:
        code, out, _ = zpipe("fleet", "stop", "--topology", file, "1=orin1")
    finally:
        config.unlink()
    assert (code, out.splitlines()[1].split()[:3]) == (0, ["1", "orin1", "stopped"])


def test_without_asyncssh_the_extra_is_named(zpipe: Zpipe, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.fleet.connection.installed", lambda module: False)
    for command in (("push",), ("fleet", "status")):
        code, out, err = zpipe(*command, "--topology", place[0])
        assert (code, out) == (2, "")
        assert "found no asyncssh, expected it to reach boards over SSH; run: " in err
        assert err.endswith("install 'zpipe[fleet]'\n")


# ---- nodes ---------------------------------------------------------------------------------------


def node_of(answer: Called) -> tuple[int, dict[str, object]]:
    """Exit code and the row of the only node."""
    code, out, _ = answer
    (row,) = json.loads(out)["nodes"]
    return code, row


def test_a_node_is_started_found_dead_and_stopped(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    where = ("--topology", file, host, "--json")
    code, row = node_of(zpipe("fleet", "start", *where))
    assert (code, row["state"], "run `zpipe push` first" in str(row["line"])) == (1, "unknown", True)
    (board.home / "zpipe" / "topologies").mkdir(parents=True)
    (board.home / "zpipe" / "topologies" / file.name).touch()

    code, row = node_of(zpipe("fleet", "start", *where))
    first = row["pid"]
    assert (code, row["state"], row["how"], row["did"]) == (0, "running", "process", "")
    assert row["line"] == f"node 1 serves stage 1 of {board.home}/zpipe/topologies/{file.name}"
    code, row = node_of(zpipe("fleet", "start", *where))
    assert (code, row["pid"], row["did"]) == (0, first, "already")

    os.killpg(int(str(first)), signal.SIGKILL)
    code, row = node_of(zpipe("fleet", "status", *where))
    assert (code, row["state"], row["pid"]) == (1, "dead", 0)
    code, row = node_of(zpipe("fleet", "restart", *where))
    assert (code, row["state"], row["pid"] != first) == (0, "running", True)
    code, row = node_of(zpipe("fleet", "stop", *where))
    assert (code, row["state"], row["line"]) == (0, "stopped", "node 1 stopped: done")
    code, out, _ = zpipe("fleet", "logs", *where[:-1])
    assert (code, out.splitlines()[-1]) == (0, "1: node 1 stopped: done")


def test_a_node_that_ends_at_once_shows_why(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    (board.home / "zpipe" / "topologies").mkdir(parents=True)
    (board.home / "zpipe" / "topologies" / file.name).touch()
    broken = board.program("broken", "#!/bin/sh\necho 'zpipe: no such bundle' >&2\nexit 2\n")
    code, row = node_of(zpipe("fleet", "start", "--topology", file, host, "--program", broken, "--json"))
    assert (code, row["state"], row["line"]) == (1, "dead", "zpipe: no such bundle")


@pytest.mark.slow
def test_units_are_installed_and_used(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    systemctl = board.program("systemctl", _SYSTEMCTL)
    journalctl = board.program("journalctl", "#!/bin/sh\necho node 1 serves stage 1\n")
    where = ("--topology", file, host)
    try:
        assert zpipe("push", *where, "--units")[0] == 0
        unit = board.home / ".config" / "systemd" / "user" / "zpipe-line-3@.service"
        assert f'ExecStart="{board.home}/bin/zpipe" node --rank %i --topology "topologies/line 3.yaml"\n' in unit.read_text()
        code, row = node_of(zpipe("fleet", "start", *where, "--json"))
        assert (code, row["state"], row["how"], row["restarts"]) == (0, "running", "systemd", 2)
        code, row = node_of(zpipe("fleet", "stop", *where, "--json"))
        assert (code, row["state"], row["how"]) == (0, "stopped", "systemd")
    finally:
        systemctl.unlink()
        journalctl.unlink()
    told = (board.home / "systemctl.log").read_text().splitlines()
    wanted = ["daemon-reload", *(f"{verb} zpipe-line-3@1.service" for verb in ("enable", "start", "stop"))]
    assert [line for line in told if line.split()[0] not in ("show", "cat", "reset-failed")] == wanted


@pytest.mark.slow
def test_a_real_node_serves(zpipe: Zpipe, board: Board, place: tuple[Path, str]) -> None:
    file, host = place
    program = board.program("real", f"#!/bin/sh\nexport PYTHONPATH='{ROOT}'\nexec '{sys.executable}' -m zpipe \"$@\"\n")
    where = ("--topology", file, host)
    assert zpipe("push", *where)[0] == 0
    code, row = node_of(zpipe("fleet", "start", *where, "--program", program, "--json"))
    assert (code, row["state"]) == (0, "running"), row
    code, row = node_of(zpipe("fleet", "status", *where, "--json"))
    assert (code, row["state"], row["session"] != 0) == (0, "serving", True), row
    code, row = node_of(zpipe("fleet", "stop", *where, "--json"))
    assert (code, row["state"], str(row["line"]).startswith("node 1 stopped: 0 tasks run")) == (0, "stopped", True), row
