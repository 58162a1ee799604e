"""Who may connect to the nodes, as a topology says it: `security:`, and the file of the nodes' public keys.

A folder of keys, made by `zpipe keygen`, holds `public.keys` (a line `RANK KEY` for every node: the allow-list, the same on every
board) and `nodeRANK.secret` (on that node's board alone). Secrets are read by zpipe.security; a topology never holds one.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpipe.model import is_key
from zpipe.topology.reader import At, Fields, items

#: `security: none` lets anybody in.
OPEN = "none"
#: The folder where a topology names none.
DEFAULT_FOLDER = "keys"
PUBLIC_FILE = "public.keys"

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class SecuritySpec:
    """Who may connect to the nodes.

    Attributes:
        keys: the nodes' public keys (Z85) by rank, their allow-list; () = no keys, and nothing but loopback is bound.
        folder: where each node finds its secret key; None where there are no keys.
        insecure: any address may be bound without keys: somebody said so.
    """

    keys: tuple[str, ...] = ()
    folder: Path | None = field(default=None, compare=False)
    insecure: bool = field(default=False, compare=False)

    def to_plain(self) -> Any:
        """As in a topology file, complete: with it no file of public keys is needed."""
        if self.keys:
            return {"keys": str(self.folder), "public": list(self.keys)}
        return OPEN if self.insecure else None


def parse_security(at: At, value: object, *, path: Path | None, nodes: int, read_keys: bool = True) -> SecuritySpec:
    """What stands under `security:`.

    Args:
        at: its place.
        value: what YAML or JSON gave.
        path: of the topology file, which a relative folder is meant from.
        nodes: how many there are; each needs a key.
        read_keys: False before there are any (`zpipe keygen`).

    Raises:
        TopologyError: it can't be understood, or the public keys are not there or not one for each node.
    """
    if value is None:
        return SecuritySpec()
    if value == OPEN:
        return SecuritySpec(insecure=True)
    if isinstance(value, str):
        raise at.wrong(value, f"{OPEN}, or keys: FOLDER")
    read = Fields(at, value, known=("keys", "public"))
    folder = _home_expanded(at / "keys", read.text("keys", DEFAULT_FOLDER))
    folder = (path.parent if path is not None else Path()).absolute() / folder
    if not read_keys:
        return SecuritySpec(folder=folder)
    if "public" in read:
        keys = [str(key) for _, key in items(at / "public", read.raw("public"))]
        found = dict(enumerate(keys))
        at /= "public"
    else:
        at /= "keys"
        found = _required_keys(at, folder)
    return SecuritySpec(keys=_checked(at, found, nodes), folder=folder)


def _home_expanded(at: At, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise at.error(f"{text!r}, whose user has no home here", "a folder") from exc


def _required_keys(at: At, folder: Path) -> dict[int, str]:
    found = read_public(folder)
    if found is None:
        raise at.error(
            f"no file {folder / PUBLIC_FILE}",
            f"the nodes' public keys; `zpipe keygen --topology {at.file}` makes them, or copy them from where that was done",
        )
    return found


def _checked(at: At, found: dict[int, str], nodes: int) -> tuple[str, ...]:
    for rank in range(nodes):
        if rank not in found:
            raise at.error(f"no key of rank {rank}", f"one for each of ranks 0 to {nodes - 1}")
        if not is_key(found[rank]):
            raise at.error(f"{found[rank]!r} at rank {rank}", "a public key, 40 characters of Z85")
    keys = tuple(found[rank] for rank in range(nodes))
    for rank, key in enumerate(keys):
        if keys.index(key) != rank:
            raise at.error(f"the key of rank {keys.index(key)} at rank {rank} again", "a key of its own for each node")
    return keys


def read_public(folder: Path) -> dict[int, str] | None:
    """{rank: public key} of a folder's file; None where there is no such file.

    Raises:
        TopologyError: it can't be read, or a line of it can't, or others than its owner may write the file or the folder: they
            would decide who comes in.
    """
    file = folder / PUBLIC_FILE
    try:
        _check_writable(folder, folder.stat().st_mode)
        text, mode = read_regular(file)
        _check_writable(file, mode)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise At(str(file)).error(f"a file that cannot be read ({exc})", "lines `RANK KEY`") from exc
    found: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 2 or not words[0].isdigit() or not is_key(words[1]):
            raise At(str(file), f"line {number}").error(repr(line[:60]), "a rank and its public key, 40 characters of Z85")
        if int(words[0]) in found:
            raise At(str(file), f"line {number}").error(f"rank {words[0]} a second time", "each rank once")
        found[int(words[0])] = words[1]
    return found


def _check_writable(path: Path, mode: int) -> None:
    if os.name == "posix" and mode & _OTHERS_WRITE:
        kind = "folder" if stat.S_ISDIR(mode) else "list of keys"
        raise At(str(path)).error(
            f"mode {stat.S_IMODE(mode):03o}", f"a {kind} that nobody but its owner can change; chmod go-w {path}"
        )


def read_regular(file: Path) -> tuple[str, int]:
    """A small file's ASCII text and its mode, both of the file that was opened.

    Raises:
        OSError: it can't be read, or is a pipe or a device, on which reading might wait for ever.
        UnicodeDecodeError: it is no ASCII.
    """
    # Without waiting: opening a named pipe waits for its writer.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, encoding="ascii") as opened:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "no regular file")
        return opened.read(), mode
