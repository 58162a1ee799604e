"""What this node takes from ROS 2, imported when it starts: ROS brings these packages, pip does not."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import Any

from zpipe.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class Ros:
    """The packages of ROS 2 that are used.

    Attributes:
        rclpy: with the submodules `exceptions`, `executors`, `qos` and `utilities`.
        interfaces, sensor, diagnostic, vision: the messages of rcl_interfaces, sensor_msgs, diagnostic_msgs and vision_msgs.
    """

    rclpy: Any
    interfaces: Any
    sensor: Any
    diagnostic: Any
    vision: Any


def import_ros() -> Ros:
    """Imports them.

    Raises:
        BackendUnavailable: one is absent, or made for another Python.
    """
    rclpy = _imported("rclpy")
    for module in ("exceptions", "executors", "qos", "utilities"):
        importlib.import_module(f"rclpy.{module}")
    # What ROS's base install lacks comes last.
    messages = [_imported(package) for package in ("rcl_interfaces", "sensor_msgs", "diagnostic_msgs", "vision_msgs")]
    return Ros(rclpy, *messages)


def _imported(package: str) -> Any:
    python = ".".join(platform.python_version_tuple()[:2])
    try:
        return importlib.import_module(package if package == "rclpy" else f"{package}.msg")
    except ImportError as exc:
        if package == "rclpy":
            raise BackendUnavailable(
                f"found no rclpy that Python {python} can load, expected that of ROS 2; run: source "
                "/opt/ros/$ROS_DISTRO/setup.bash, with zpipe installed for ROS's own Python (Humble 3.10, Jazzy 3.12)"
            ) from exc
        raise BackendUnavailable(
            f"found no {package} that Python {python} can load, expected that package of ROS 2; run: apt install "
            f"ros-$ROS_DISTRO-{package.replace('_', '-')}"
        ) from exc
