"""Where a topology's files lie on a board.

    FOLDER/                          `zpipe` in the home of who logs in, unless said otherwise; the node's working directory
        topologies/line2.yaml        as it is here, byte for byte
        topologies/keys/             what its `security:` names: public.keys, and the secrets of this board's ranks alone
        engines/digits-mobilenetv2/  the bundle; where the topology names it with a path, at that path
        fleet/                       process ids and logs of nodes that run without systemd
        .venv/bin/zpipe              zpipe, if it is not found elsewhere

The text of a topology's `bundle:` is part of what its nodes compare, so it stays as it is and the bundle goes where a node that is
started in FOLDER finds it first.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from zpipe.bundle import MANIFEST
from zpipe.errors import ConfigError
from zpipe.topology import Topology
from zpipe.topology.keys import DEFAULT_FOLDER
from zpipe.topology.reader import read_yaml

#: Of everything on a board, in the home of who logs in.
FOLDER = "zpipe"
_TOPOLOGIES = "topologies"
_ENGINES = "engines"


@dataclass(frozen=True, slots=True)
class Layout:
    """Places on a board, from its folder on.

    Attributes:
        topology: the topology file.
        bundle: the bundle's folder.
        keys: the folder of keys; None where the topology names none.
        unit: systemd's name for its nodes, `zpipe-line2@.service`; an instance is a rank.
    """

    topology: str
    bundle: str
    keys: str | None
    unit: str

    def instance(self, rank: int) -> str:
        """The unit of one rank: `zpipe-line2@1.service`."""
        return self.unit.replace("@", f"@{rank}")


def layout(topology: Topology) -> Layout:
    """Where a topology's files lie on every board.

    Raises:
        ConfigError: it names its bundle or its keys so that no board could find them.
    """
    path = topology.path
    assert path is not None, "it was read from a file"
    return Layout(
        topology=f"{_TOPOLOGIES}/{path.name}",
        bundle=_bundle(topology),
        keys=_keys(topology),
        # What systemd takes in a unit's name (systemd.unit(5)); a dash for anything else.
        unit=f"zpipe-{re.sub(r'[^A-Za-z0-9_.:-]', '-', path.stem)}@.service",
    )


def _bundle(topology: Topology) -> str:
    """The first place in which `zpipe.bundle.load_bundle` looks that lies within the folder."""
    wanted = PurePosixPath(topology.bundle)
    if wanted.name == MANIFEST:
        wanted = wanted.parent
    if len(wanted.parts) == 1 and wanted.name != "..":
        return f"{_ENGINES}/{wanted}"
    inside = posixpath.normpath(wanted)
    if inside.startswith(".."):
        inside = posixpath.normpath(f"{_TOPOLOGIES}/{wanted}")
    if inside == "." or inside.startswith("..") or wanted.is_absolute():
        raise ConfigError(
            f"{topology.path}: bundle: found {topology.bundle!r}, expected a name or a path from the topology's folder, which "
            f"every board finds in its own; write `bundle: {wanted.name}` and keep the bundle in {_ENGINES}/ or beside the topology"
        )
    return inside


def _keys(topology: Topology) -> str | None:
    if topology.security.folder is None:
        return None
    assert topology.path is not None
    plain = read_yaml(topology.path.read_text(encoding="utf-8"), str(topology.path))
    security = plain.get("security") if isinstance(plain, Mapping) else None
    text = str(security.get("keys", DEFAULT_FOLDER)) if isinstance(security, Mapping) else DEFAULT_FOLDER
    inside = posixpath.normpath(f"{_TOPOLOGIES}/{text}")
    if text.startswith(("/", "~")) or inside.startswith(".."):
        raise ConfigError(
            f"{topology.path}: security.keys: found {text!r}, expected a folder beside the topology, which every board finds in "
            "its own; move the keys there and write `security: {keys: keys}`"
        )
    return inside
