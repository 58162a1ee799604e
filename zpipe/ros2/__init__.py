"""A pipeline as a ROS 2 node: pictures of a topic in, classifications out.

    source /opt/ros/$ROS_DISTRO/setup.bash
    zpipe ros2 --ros-args -r image:=/camera/image_raw -p topology:=line4.yaml -p deadline:=0.2

- `image`, taken: sensor_msgs/Image; with `image_transport:=compressed` sensor_msgs/CompressedImage on `image/compressed`.
- `classification`, given: vision_msgs/Classification with the picture's header; `results` holds class name and confidence.
- `/diagnostics`, given once a second: diagnostic_msgs/DiagnosticArray with the rate of answers, their latency and exits, and how
  many pictures were dropped or could not be read.

Parameters, all read when it starts (`parameters.py`): `topology`, `attach`, `rank`, `insecure`, `deadline`, `fit`,
`image_transport`.
Start it under names of your own with `-r __node:=...`; topics are remapped, as everywhere in ROS.

`interface.py` is the only module that imports ROS, which no plain install has; `images.py` reads pictures and believes nothing they
say of themselves; `node.py` is the node (`newest.py` its thread), `run.py` its life.
"""

from __future__ import annotations

from zpipe.ros2.run import run

__all__ = ["run"]
