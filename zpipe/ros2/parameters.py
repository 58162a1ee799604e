"""The node's parameters: `-p NAME:=VALUE` after `--ros-args`, or a file of parameters. All are read when it starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from zpipe.datasets.images import FITS
from zpipe.errors import ConfigError
from zpipe.ros2.interface import Ros

#: `image_transport`: {what ROS calls it: what it adds to the topic's name}.
TRANSPORTS = {"raw": "", "compressed": "/compressed"}

_DESCRIPTIONS = {
    "topology": "a topology file, or the name of one that comes with zpipe",
    "attach": "the other nodes run already (zpipe node); else all are started on this machine",
    "rank": "with attach: which source of the topology this node is; -1: the lowest",
    "insecure": "with attach: listen without keys where a network can reach it",
    "deadline": "seconds a picture has; what comes later is dropped",
    "fit": f"what becomes of a picture: {', '.join(FITS)}",
    "image_transport": f"how pictures come: {', '.join(TRANSPORTS)}",
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Their values; the defaults are the parameters' own."""

    topology: str = "line4.yaml"
    attach: bool = False
    rank: int = -1
    insecure: bool = False
    deadline: float = 1.0
    fit: str = "stretch"
    image_transport: str = "raw"


def declare(ros: Ros, node: Any) -> Parameters:
    """Declares them at a node; what was given to it is their value.

    Raises:
        ConfigError: a value of the wrong type, or none of those there are.
    """
    values = {}
    for field in fields(Parameters):
        descriptor = ros.interfaces.ParameterDescriptor(description=_DESCRIPTIONS[field.name], read_only=True)
        try:
            values[field.name] = node.declare_parameter(field.name, field.default, descriptor).value
        except ros.rclpy.exceptions.InvalidParameterTypeException as exc:
            kind = type(field.default).__name__
            like = f"{field.name}:={field.default}".lower() if kind == "bool" else f"{field.name}:={field.default}"
            raise ConfigError(f"parameter {field.name}: found a value of another type, expected {kind}, such as {like}") from exc
    found = Parameters(**values)
    for name, value, known in (("fit", found.fit, FITS), ("image_transport", found.image_transport, tuple(TRANSPORTS))):
        if value not in known:
            raise ConfigError(f"parameter {name}: found {value!r}, expected one of {', '.join(known)}")
    return found
