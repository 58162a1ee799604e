"""The node's life: from its arguments to Ctrl-C, with nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from zpipe.configure import load_checked
from zpipe.datasets.images import import_pillow
from zpipe.errors import ConfigError, ZpipeError, one_line
from zpipe.infer import shaper_of
from zpipe.ros2.interface import Ros, import_ros
from zpipe.ros2.node import Classifier
from zpipe.ros2.parameters import Parameters, declare
from zpipe.runtime.sync import SyncPipeline
from zpipe.topology import load_topology

NAME = "zpipe"


def run(arguments: Sequence[str]) -> None:
    """Runs the node until ROS is shut down: by Ctrl-C, SIGTERM or whoever owns the context.

    Args:
        arguments: `--ros-args` and what follows.

    Raises:
        BackendUnavailable: ROS 2, or Pillow, is absent.
        ConfigError: an argument, a parameter, topology or bundle is wrong.
        PipelineClosed: the network is gone for good.
    """
    ros = import_ros()
    _start(ros, arguments)
    try:
        node = ros.rclpy.create_node(NAME)
        try:
            _serve(ros, node, declare(ros, node))
        finally:
            node.destroy_node()
    except (KeyboardInterrupt, ros.rclpy.executors.ExternalShutdownException):
        pass  # that is how a node ends
    except ZpipeError:
        raise
    except Exception:
        if ros.rclpy.ok():
            raise
        # SIGTERM shut ROS down on a thread of rclpy's while a callback was at work here: what it called then found no context.
    finally:
        ros.rclpy.try_shutdown()


def _start(ros: Ros, arguments: Sequence[str]) -> None:
    given = [NAME, *arguments]
    try:
        _, *rest = ros.rclpy.utilities.remove_ros_args(given)
        if not rest:
            ros.rclpy.init(args=given)
    except Exception as exc:  # of a class of rclpy's own C++ module, by version
        reason = one_line(" ".join(str(exc).split()))
        raise ConfigError(f"found arguments that ROS does not take ({reason}), expected --ros-args -p NAME:=VALUE") from exc
    if rest:
        raise ConfigError(f"found {one_line(rest[0])!r}, expected ROS arguments after --ros-args, such as -p topology:=line4.yaml")


def _serve(ros: Ros, node: Any, parameters: Parameters) -> None:
    topology = load_topology(parameters.topology)
    bundle = load_checked(topology)
    shaper = shaper_of(topology, bundle, fit=parameters.fit)
    if shaper.size is None:
        raise ConfigError(f"found bundle {bundle.name}, which takes no images, expected one that does")
    import_pillow()  # missed now, not at the first picture
    options: dict[str, Any] = {"when_full": "latest", "deadline": parameters.deadline}
    if parameters.attach:
        rank = None if parameters.rank < 0 else parameters.rank
        pipeline = SyncPipeline.connect(topology, rank=rank, insecure=parameters.insecure, **options)
    else:
        pipeline = SyncPipeline.local(topology, **options)
    with pipeline, closing(Classifier(ros, node, pipeline, shaper, parameters, hardware=topology.name)):
        node.get_logger().info(f"classifying {node.resolve_topic_name('image')} on {topology.name}")
        ros.rclpy.spin(node)
