"""A stand-in for the part of rclpy and of ROS 2's messages that the node uses: the machines that run these tests have no ROS.

Messages refuse unknown fields and wrong types as the generated ones do; guard conditions may be triggered on any thread; callbacks
run on the one that spins, in `spin`, which ends when ROS is shut down. What it cannot show, that a middleware carries
the messages, `test_rclpy.py` does where ROS is installed.
"""

from __future__ import annotations

import queue
from array import array
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


class ExternalShutdownException(Exception): ...


class InvalidParameterTypeException(Exception): ...


class UnknownROSArgsError(RuntimeError): ...


def message(name: str, /, **fields: tuple[type, Any]) -> type:
    """A message class: {field: (type, default)}."""

    def init(self: Any, **given: Any) -> None:
        for key, (_, default) in fields.items():
            setattr(self, key, copy(default) if not isinstance(default, type) else default())
        for key, value in given.items():
            setattr(self, key, value)

    def setattr_checked(self: Any, key: str, value: Any) -> None:
        assert key in fields, f"{name} has no field {key}"
        assert isinstance(value, fields[key][0]), f"{name}.{key}: {value!r}"
        object.__setattr__(self, key, value)

    return type(name, (), {"__init__": init, "__setattr__": setattr_checked, "__slots__": tuple(fields)})


Time = message("Time", sec=(int, 0), nanosec=(int, 0))
Header = message("Header", stamp=(Time, Time), frame_id=(str, ""))
Image = message(
    "Image",
    header=(Header, Header),
    height=(int, 0),
    width=(int, 0),
    encoding=(str, ""),
    is_bigendian=(int, 0),
    step=(int, 0),
    data=(array, array("B")),
)
CompressedImage = message("CompressedImage", header=(Header, Header), format=(str, ""), data=(array, array("B")))
ObjectHypothesis = message("ObjectHypothesis", class_id=(str, ""), score=(float, 0.0))
Classification = message("Classification", header=(Header, Header), results=(list, []))
KeyValue = message("KeyValue", key=(str, ""), value=(str, ""))
DiagnosticStatus = message(
    "DiagnosticStatus", level=(bytes, b"\0"), name=(str, ""), message=(str, ""), hardware_id=(str, ""), values=(list, [])
)
DiagnosticStatus.OK, DiagnosticStatus.WARN = b"\0", b"\1"  # type: ignore[attr-defined]
DiagnosticArray = message("DiagnosticArray", header=(Header, Header), status=(list, []))
ParameterDescriptor = message("ParameterDescriptor", description=(str, ""), read_only=(bool, False))


@dataclass
class Publisher:
    kind: type
    topic: str
    sent: list[Any] = field(default_factory=list)

    def publish(self, sent: Any) -> None:
        assert type(sent) is self.kind
        self.sent.append(sent)


@dataclass
class Log:
    lines: list[str] = field(default_factory=list)

    def warning(self, line: str) -> None:
        self.lines.append(line)

    info = warning


class Node:
    """One node; what it opened lies in its attributes."""

    def __init__(self, ros: Rclpy, name: str) -> None:
        self._ros = ros
        self._name = name
        self.publishers: dict[str, Publisher] = {}
        self.subscriptions: dict[str, tuple[type, Callable[[Any], None], Any]] = {}
        self.timers: list[Callable[[], None]] = []
        self.log = Log()
        self.destroyed = False

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> Log:
        return self.log

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: Time(sec=7)))

    def resolve_topic_name(self, topic: str) -> str:
        return self._ros.remaps.get(topic, topic if topic.startswith("/") else f"/{topic}")

    def declare_parameter(self, name: str, default: Any, descriptor: Any) -> Any:
        assert type(descriptor) is ParameterDescriptor
        value = self._ros.given.get(name, default)
        if type(value) is not type(default):
            raise InvalidParameterTypeException(name)
        return SimpleNamespace(value=value)

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        return self.publishers.setdefault(self.resolve_topic_name(topic), Publisher(kind, topic))

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
        self.subscriptions[self.resolve_topic_name(topic)] = (kind, callback, profile)

    def create_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def create_guard_condition(self, callback: Callable[[], None]) -> Any:
        return SimpleNamespace(trigger=lambda: self._ros.ready.put(callback))

    def destroy_node(self) -> None:
        self.destroyed = True

    def receive(self, topic: str, received: Any) -> None:
        """A message came in: its callback is ready."""
        kind, callback, _ = self.subscriptions[topic]
        assert type(received) is kind
        self._ros.ready.put(lambda: callback(received))


class Rclpy:
    """The module `rclpy`, and the hands of whoever runs the robot.

    Attributes:
        given, remaps: parameters and topics as the command line would set them.
        ready: callbacks for the executor; None shuts ROS down.
        spinning: called when `spin` begins.
        up: between init and shutdown.
    """

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.remaps: dict[str, str] = {}
        self.ready: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.spinning: Callable[[Node], None] = lambda node: None
        self.nodes: list[Node] = []
        self.up = False
        self.exceptions = SimpleNamespace(InvalidParameterTypeException=InvalidParameterTypeException)
        self.executors = SimpleNamespace(ExternalShutdownException=ExternalShutdownException)
        self.qos = SimpleNamespace(qos_profile_sensor_data=SimpleNamespace(reliability="best effort", depth=5))
        self.utilities = SimpleNamespace(remove_ros_args=lambda args: args[: (*args, "--ros-args").index("--ros-args")])

    def init(self, *, args: list[str]) -> None:
        if "--wrong" in args:
            raise UnknownROSArgsError("found unknown ROS arguments: '--wrong'")
        self.up = True

    def create_node(self, name: str) -> Node:
        assert self.up
        self.nodes.append(Node(self, name))
        return self.nodes[-1]

    def spin(self, node: Node) -> None:
        self.spinning(node)
        while (callback := self.ready.get(timeout=60)) is not None:
            callback()
        self.up = False
        raise ExternalShutdownException

    def ok(self) -> bool:
        return self.up

    def try_shutdown(self) -> None:
        self.up = False


def modules(rclpy: Rclpy) -> dict[str, Any]:
    """What `sys.modules` holds where ROS is installed."""
    found: dict[str, Any] = {"rclpy": rclpy}
    found |= {f"rclpy.{name}": getattr(rclpy, name) for name in ("exceptions", "executors", "qos", "utilities")}
    packages: dict[str, tuple[type, ...]] = {
        "sensor_msgs": (Image, CompressedImage),
        "vision_msgs": (Classification, ObjectHypothesis),
        "diagnostic_msgs": (DiagnosticArray, DiagnosticStatus, KeyValue),
        "rcl_interfaces": (ParameterDescriptor,),
    }
    for package, messages in packages.items():
        found[package] = ModuleType(package)
        found[f"{package}.msg"] = SimpleNamespace(**{each.__name__: each for each in messages})
    return found
