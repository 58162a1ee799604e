"""A systemd unit for the nodes of a topology.

One template for all boards, `zpipe-line2@.service`, of which each board starts the instances of its ranks, `zpipe-line2@1`: what
differs between ranks stands in the topology already, and one file can be the same everywhere. Known to systemd 245 (Ubuntu 20.04,
JetPack 5) and later.

Sources: systemd.service(5), systemd.exec(5), systemd.unit(5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from zpipe import __version__
from zpipe.deploy.layout import FOLDER, Layout
from zpipe.descriptors import MOST_DESCRIPTORS
from zpipe.errors import ConfigError
from zpipe.runtime.node import DRAIN_SECONDS

Scope = Literal["user", "system"]

#: A node that is told to end drains, then says Bye and lets its executor go; after this long it is killed.
STOP_SECONDS = math.ceil(DRAIN_SECONDS) + 10
#: A node that failed is started again so much later. It never gives up: a board that lost its network for an hour comes back by
#: itself. A wrong file makes it start in vain for ever, at the cost of about a second of one core every time.
RESTART_SECONDS = 5
#: Of a node of the system that no --dir places.
SYSTEM_FOLDER = "/opt/zpipe"

_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOptions:
    """What is not in the topology.

    Attributes:
        scope: `user`: a unit of the person who logs in, who needs no root; `system`: of the machine.
        folder: where the topology's files lie on the board; one that does not begin with / is meant from the home of a user unit.
        program: the `zpipe` to run; "" = the one in the folder's `.venv`.
        user: whom a system unit runs as; "" = root.
        arguments: of `zpipe node`, after the topology.
    """

    scope: Scope = "user"
    folder: str = ""
    program: str = ""
    user: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit file.

    Attributes:
        name: of the file.
        text: what stands in it.
        folder: of the topology's files, as a person would name it.
    """

    name: str
    text: str
    folder: str


def render_unit(name: str, places: Layout, options: UnitOptions) -> Unit:
    """The unit of a topology's nodes.

    Args:
        name: of the topology, for people.
        places: where its files lie.
        options: the rest.

    Raises:
        ConfigError: an option cannot be.
    """
    if options.scope == "user" and options.user:
        raise ConfigError(f"--user: found {options.user} for a user unit, expected none: it runs as who installs it; say --system")
    folder = options.folder or (SYSTEM_FOLDER if options.scope == "system" else FOLDER)
    home = _path(folder, "--dir", options.scope)
    program = _path(options.program, "--program", options.scope) if options.program else f"{home}/.venv/bin/zpipe"
    words = ["node", "--rank", "%i", "--topology", _escaped(places.topology), *map(_escaped, options.arguments)]
    command = " ".join([_quoted(program), *(_quoted(word.replace("$", "$$")) for word in words)])
    lines = _lines(name, places, options, home, command)
    return Unit(places.unit, "\n".join(lines) + "\n", folder if folder.startswith("/") else f"~/{folder}")


def _lines(name: str, places: Layout, options: UnitOptions, home: str, command: str) -> Iterator[str]:
    system = options.scope == "system"
    control = "sudo systemctl" if system else "systemctl --user"
    yield f"# Made by `zpipe deploy` {__version__}: a template, the same on every board; the instance is the rank."
    yield f"#   {control} enable --now {places.unit.replace('@.', '@RANK.')}"
    yield "[Unit]"
    yield f"Description=zpipe node %i of {_escaped(_printable(name))}"
    if system:
        yield "Wants=network-online.target"
        yield "After=network-online.target"
    yield "# It tries for ever: what it waits for may come back after an hour."
    yield "StartLimitIntervalSec=0"
    yield ""
    yield "[Service]"
    yield "# `exec`: started once it runs. It may take minutes until it serves, where a GPU's engines are built at the first start."
    yield "Type=exec"
    if system and options.user:
        yield f"User={_user(options.user)}"
    yield f"WorkingDirectory={home}"
    yield "Environment=PYTHONUNBUFFERED=1"
    if system:
        yield "# Engines that cannot be written beside the bundle, and what CUDA compiles, are kept from start to start."
        yield "CacheDirectory=zpipe"
        yield "Environment=XDG_CACHE_HOME=%C/zpipe CUDA_CACHE_PATH=%C/zpipe/cuda"
        yield "# Makes the device files of an NVIDIA card where nobody did: the node itself may not become root for that."
        yield "ExecStartPre=-+/usr/bin/nvidia-modprobe -c0 -u"
    yield f"ExecStart={command}"
    yield "Restart=on-failure"
    yield f"RestartSec={RESTART_SECONDS}"
    yield f"# SIGTERM lets it finish and hand over what it holds, for {DRAIN_SECONDS:g} s."
    yield "KillMode=mixed"
    yield f"TimeoutStopSec={STOP_SECONDS}"
    yield f"LimitNOFILE={MOST_DESCRIPTORS}"
    yield "UMask=0077"
    if system:
        yield "# Nothing here hides devices, memory that is written and run, or /tmp: CUDA, TensorRT and MPS need them. No"
        yield "# ProtectClock: it would hide every device but the clock's."
        yield "NoNewPrivileges=yes"
        yield "ProtectSystem=full"
        yield "ProtectControlGroups=yes"
        yield "ProtectKernelModules=yes"
        yield "RestrictSUIDSGID=yes"
        yield "LockPersonality=yes"
        yield "SystemCallArchitectures=native"
    yield ""
    yield "[Install]"
    yield f"WantedBy={'multi-user' if system else 'default'}.target"


# ---- words as systemd reads them -----------------------------------------------------------------


def _path(text: str, option: str, scope: Scope) -> str:
    """An absolute path, `%` escaped; a relative one stands in the home of a user unit.

    Raises:
        ConfigError: it is relative for a system unit, or has characters that a unit cannot hold everywhere.
    """
    if not text.isprintable() or not set(text).isdisjoint("\\\"'") or text != text.strip():
        raise ConfigError(
            f"{option}: found {text!r}, expected a path without backslashes, quotes, line ends or spaces around it; choose another"
        )
    if text.startswith("/"):
        return _escaped(text.rstrip("/") or "/")
    if scope == "system":
        raise ConfigError(f"{option}: found {text!r}, expected a path from / on for a unit of the system, such as {SYSTEM_FOLDER}")
    return f"%h/{_escaped(text.rstrip('/'))}"


def _user(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}|\d{1,9}", text):
        raise ConfigError(f"--user: found {text!r}, expected the name or number of a user")
    return text


def _escaped(text: str) -> str:
    """Without specifiers: a percent sign is one."""
    return text.replace("%", "%%")


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable() and each != "\\")


def _quoted(word: str) -> str:
    """One word of a command line."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
