"""The example in every command's help, and completion of what is typed, in the shells that people have."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from zpipe.cli import cli
from zpipe.cli.completion import VARIABLE

ROOT = Path(__file__).parents[1]


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Each with its name, those of groups within groups, too."""
    for name, command in sorted(group.commands.items()):
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = dict(commands(cli))


# ---- examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"], terminal_width=80).stdout
    *_, title, example = shown.rstrip().splitlines()
    assert title.strip() == "Example:"
    program, *words = shlex.split(example.partition(">>")[0])
    assert program == "zpipe"
    assert " ".join(words).startswith(name)
    assert "|" not in example
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)  # its options and arguments are there, and take these values


def test_the_list_of_commands_says_whole_sentences() -> None:
    for group in ((), ("trace",)):
        shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).stdout
        assert not re.search(r"\.\.\.\s", shown.partition("Commands:")[2])
        assert "Commands:" in shown


def test_examples_name_topologies_bundles_and_devices_that_there_are() -> None:
    from zpipe.bundle import load_bundle
    from zpipe.topology import load_topology

    for command in COMMANDS.values():
        words = shlex.split((command.epilog or "-").splitlines()[-1])
        named = dict(pairwise(words))
        if (topology := named.get("--topology", "boards.yaml")) != "boards.yaml":  # the reader's own
            load_topology(topology)
        if (bundle := named.get("--bundle", "engines/model")) != "engines/model":
            load_bundle(bundle, verify=False)


# ---- completion --------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """What is offered for the last of these words."""
    *before, typed = words
    return [item.value for item in ShellComplete(cli, {}, "zpipe", VARIABLE).get_completions(before, typed)]


def test_names_are_completed() -> None:
    assert completed("do") == ["doctor"]
    assert {"mesh2.yaml", "mesh3.yaml", "mesh5.yaml"} <= set(completed("bench", "--topology", "mesh"))
    assert completed("infer", "--bundle", "digits-mobilenetv2-h") == ["digits-mobilenetv2-half"]
    assert completed("node", "--topology", "line2.yaml", "--rank", "") == ["0", "1"]
    assert completed("node", "--rank", "") == ["0", "1", "2", "3"]
    two = ("--topology", "two-sources.yaml")
    assert completed("bench", *two, "--source", "") == ["camera", "mapping"]
    assert completed("sim", *two, "--source-rate", "m") == ["mapping="]
    assert completed("completion", "") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_option_that_names_a_bundle_or_reads_a_topology_is_completed(name: str) -> None:
    for option in COMMANDS[name].params:
        if "--bundle" in option.opts:
            assert "digits-mobilenetv2" in completed(*name.split(), "--bundle", "dig")
        if "--topology" in option.opts and not isinstance(option.type, click.Path):
            assert "line4.yaml" in completed(*name.split(), "--topology", "lin")


def test_own_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hall.yaml").write_text("wrong")
    monkeypatch.chdir(tmp_path)
    assert completed("top", "--topology", "ha") == ["hall.yaml"]
    assert completed("node", "--topology", "hall.yaml", "--rank", "") == []
    (item,) = ShellComplete(cli, {}, "zpipe", VARIABLE).get_completions(["top", "--topology"], "boards/")
    assert (item.value, item.type) == ("boards/", "file")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_lines(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert VARIABLE in done.stdout


BASH, ZSH, FISH = (shutil.which(shell) for shell in ("bash", "zsh", "fish"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a shell that has zpipe as a command on its path, and nobody's own configuration."""
    program = tmp_path / "bin" / "zpipe"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m zpipe \"$@\"\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb"}


@pytest.mark.skipif(BASH is None, reason="no bash here")
def test_bash_completes_what_is_typed(tmp_path: Path, environment: dict[str, str]) -> None:
    """The lines read by a bash, its completion called as the Tab key does."""
    script = """
    source <(zpipe completion bash)
    registered=$(complete -p zpipe)
    [[ $registered =~ -F\\ ([^ ]+) ]]
    COMP_WORDS=(zpipe bench --topology mesh) COMP_CWORD=3
    ${BASH_REMATCH[1]} zpipe mesh --topology
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    assert_meshes(offered(BASH, ["--norc", "-c", script], tmp_path, environment))


@pytest.mark.skipif(FISH is None, reason="no fish here")
def test_fish_completes_what_is_typed(tmp_path: Path, environment: dict[str, str]) -> None:
    script = "zpipe completion fish | source; complete --do-complete 'zpipe bench --topology mesh'"
    assert_meshes(offered(FISH, ["--no-config", "-c", script], tmp_path, environment))


@pytest.mark.skipif(ZSH is None, reason="no zsh here")
def test_zsh_completes_what_is_typed(tmp_path: Path, environment: dict[str, str]) -> None:
    """At a terminal, where alone zsh completes: its Tab key is pressed."""
    terminal, shells = pty.openpty()
    assert ZSH is not None
    with subprocess.Popen([ZSH, "-f", "-i"], stdin=shells, stdout=shells, stderr=shells, cwd=tmp_path, env=environment) as shell:
        try:
            os.write(terminal, b"autoload -Uz compinit; compinit -u -D; source <(zpipe completion zsh); echo re''ady\n")
            read_until(terminal, b"ready")
            os.write(terminal, b"zpipe bench --topology mesh5\t")
            read_until(terminal, b"mesh5.yaml")
        finally:
            shell.kill()
            os.close(terminal)
            os.close(shells)


def offered(shell: str | None, arguments: list[str], folder: Path, environment: dict[str, str]) -> set[str]:
    assert shell is not None
    done = subprocess.run([shell, *arguments], capture_output=True, text=True, timeout=60, cwd=folder, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def assert_meshes(names: set[str]) -> None:
    assert {"mesh2.yaml", "mesh3.yaml"} <= names
    assert all(re.fullmatch(r"mesh[\w-]*\.yaml", name) for name in names)


def read_until(terminal: int, wanted: bytes) -> None:
    """What comes to the terminal; what the shell says about itself in between does not matter."""
    came = b""
    while wanted not in came:
        assert select.select([terminal], [], [], 60.0)[0], came
        came += os.read(terminal, 4096)
