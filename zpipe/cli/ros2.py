"""`zpipe ros2`."""

from __future__ import annotations

import click

from zpipe.cli.group import cli, example


@cli.command(
    context_settings={"ignore_unknown_options": True},
    epilog=example("zpipe ros2 --ros-args -r image:=/camera/image_raw -p topology:=line4.yaml"),
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="--ros-args ...")
def ros2(arguments: tuple[str, ...]) -> None:
    """Classify the pictures of a ROS 2 topic, as a node.

    It takes sensor_msgs/Image on `image` (with -p image_transport:=compressed CompressedImage on `image/compressed`) and gives
    vision_msgs/Classification on `classification`, with the picture's header; rate, latency and exits stand on /diagnostics.
    Parameters: topology, deadline (seconds, as 0.2), fit, image_transport, attach, rank, insecure.

    It runs where ROS 2 does: source its setup.bash, and install zpipe[images] for its Python.
    """
    from zpipe.ros2 import run

    run(arguments)
