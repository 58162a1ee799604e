"""Key files, and what a node needs of them: its own pair, whom it lets in, and whether it may bind its address at all.

`make_keys` writes what `zpipe keygen` is for; `node_keys` reads one node's part of it. A secret is a file of one line, mode 0600,
refused when others can read it. What the keys protect stands in zpipe.transport.zeromq, rule 5; what they don't: a node that has
been broken into has its key, and is believed until it is caught lying (then the key is struck from the allow-list).
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Collection
from pathlib import Path

from zpipe.errors import ConfigError
from zpipe.model import is_key
from zpipe.topology import Topology
from zpipe.topology.keys import PUBLIC_FILE, read_public, read_regular
from zpipe.transport.curve import CurveKeys, check_curve, new_keypair, public_key

#: Neither the group nor others may do anything with a secret.
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def secret_file(folder: Path, rank: int) -> Path:
    """Where a node's secret key is kept."""
    return folder / f"node{rank}.secret"


# ---- what a node needs ---------------------------------------------------------------------------


def node_keys(topology: Topology, rank: int) -> CurveKeys | None:
    """The keys of one node of a topology; None where it has none and may run without.

    Raises:
        ConfigError: the node would be open to a network, its secret can't be read, is readable by others or belongs to another
            key than the topology says, or libzmq has no CURVE.
    """
    security = topology.security
    if not security.keys or security.folder is None:
        _check_exposure(topology, rank)
        return None
    check_curve()
    file = secret_file(security.folder, rank)
    secret = read_secret(file)
    public = public_key(secret)
    if public != security.keys[rank]:
        raise ConfigError(
            f"{file}: found the secret of public key {public}, expected that of {security.keys[rank]}, which the topology has for "
            f"rank {rank}; copy {PUBLIC_FILE} and {file.name} from where both were made"
        )
    # Whoever has the key of a rank may ask every node for its counters (role observer), on a board that board's own, too: its
    # secret is all there is. A link's Hello is looked at by rank besides, and no node is a neighbour of itself.
    return CurveKeys(public, secret, frozenset(security.keys))


def observer_keys(topology: Topology) -> CurveKeys | None:
    """What an observer shows the nodes of a topology: the key of the first rank whose secret is here. It lets nobody in.

    Raises:
        ConfigError: the nodes have keys and the secret of none of them is here, or the one that is cannot be used; or libzmq has no
            CURVE.
    """
    security = topology.security
    if not security.keys or security.folder is None:
        return None
    check_curve()
    for public, file in ((key, secret_file(security.folder, rank)) for rank, key in enumerate(security.keys)):
        if not file.exists():
            continue
        secret = read_secret(file)
        if public_key(secret) == public:
            return CurveKeys(public, secret, frozenset())
    raise ConfigError(
        f"{security.folder}: found the secret of no rank whose key the topology has, expected one to show its nodes; copy "
        f"{secret_file(security.folder, topology.source.rank).name}, or another node's, from where `zpipe keygen` was run"
    )


def read_secret(file: Path) -> str:
    """The secret key in a file.

    Raises:
        ConfigError: it is not there, is readable by others, or holds no key.
    """
    try:
        text, mode = read_regular(file)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{file}: found no such file, expected this node's secret key; copy it from where `zpipe keygen` was run"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: found that it cannot be read ({exc}), expected this node's secret key") from exc
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(f"{file}: found mode {stat.S_IMODE(mode):03o}, expected a secret nobody else can read; chmod 600 {file}")
    secret = text.strip()
    if not is_key(secret):
        raise ConfigError(f"{file}: found no key, expected 40 characters of Z85; copy it from where `zpipe keygen` was run")
    return secret


def _check_exposure(topology: Topology, rank: int) -> None:
    bind = topology.node(rank).bind_address
    if topology.security.insecure or is_loopback(bind):
        return
    raise ConfigError(
        f"{topology.path or topology.name}: rank {rank} would listen at {bind} without keys, where whoever reaches it may send it "
        f"work; make keys (`zpipe keygen --topology {topology.path or topology.name}`), or say --insecure (in the file: "
        "`security: none`) if you trust everybody there"
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a `host:port`."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, an interface or `*`


# ---- making them ---------------------------------------------------------------------------------


def make_keys(folder: Path, ranks: Collection[int]) -> dict[int, str]:
    """Makes a pair for each of these ranks: the secrets as files of their own, the public keys added to the folder's list.

    Nothing is overwritten, and either all of them are made or none.

    Returns:
        {rank: public key} of the new ones.

    Raises:
        ConfigError: a rank has a key there already, or the folder cannot be written, or others may write it.
    """
    check_curve()
    known = read_public(folder) or {}
    for rank in sorted(ranks):
        taken = PUBLIC_FILE if rank in known else secret_file(folder, rank).name if secret_file(folder, rank).exists() else ""
        if taken:
            raise ConfigError(
                f"{folder / taken}: found a key of rank {rank} already, expected none: keys are never overwritten; "
                "choose another folder with --out, or move the old ones away"
            )
    made: dict[int, str] = {}
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for rank in sorted(ranks):
            made[rank], secret = new_keypair()
            file = secret_file(folder, rank)
            _write_secret(file, secret)
            written.append(file)
        _write_public(folder, {**known, **made})
    except OSError as exc:
        for file in written:
            file.unlink()
        raise ConfigError(
            f"{folder}: found that no key can be written ({exc.strerror or exc}), expected a folder of yours; say --out FOLDER"
        ) from exc
    return made


def _write_secret(file: Path, secret: str) -> None:
    # Made with its mode, and only if it is new: no moment at which others could read it, no link to follow.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(secret + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _write_public(folder: Path, keys: dict[int, str]) -> None:
    """In one step: a node that starts meanwhile reads the old list or the new one."""
    text = "# Public keys by rank: who may connect. No secret, but whoever can change it decides who comes in.\n"
    text += "".join(f"{rank} {key}\n" for rank, key in sorted(keys.items()))
    fresh = folder / f"{PUBLIC_FILE}.new"
    fresh.write_text(text, encoding="ascii")
    fresh.chmod(0o644)  # whatever the umask: a list that others can write is refused
    os.replace(fresh, folder / PUBLIC_FILE)
