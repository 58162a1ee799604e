"""The ROS 2 node against the real thing: rclpy, a middleware, a camera in another process. Skipped where ROS is absent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.mesh import HALF
from tests.test_cli import PATIENCE_SECONDS, ROOT
from zpipe import load_bundle

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: source its setup.bash")
vision_msgs = pytest.importorskip("vision_msgs.msg", reason="needs ROS 2's vision_msgs")

#: What ROS's packages import is for ROS to mend.
pytestmark = pytest.mark.filterwarnings("default")

#: Nobody else's messages: tests may run beside a robot.
DOMAIN = "77"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("ROS_DOMAIN_ID", DOMAIN)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    rclpy.init(args=[])
    made = rclpy.create_node("camera")
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_camera_is_classified_over_a_middleware(node: Any, tmp_path: Path, ended_by: signal.Signals) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    topology = tmp_path / "one.yaml"
    topology.write_text(f"name: one\nbundle: {HALF}\nnodes: [{{rank: 0, stages: [0, 1, 2, 3, 4]}}]\n")
    shown = load_bundle(HALF).evaluation()
    camera = node.create_publisher(Image, "/camera/image_raw", qos_profile_sensor_data)
    answers: list[Any] = []
    states: list[Any] = []
    node.create_subscription(vision_msgs.Classification, "/classification", answers.append, 10)
    node.create_subscription(DiagnosticArray, "/diagnostics", states.append, 10)
    command = ["--ros-args", "-r", "image:=/camera/image_raw", "-p", f"topology:={topology}", "-p", "deadline:=5.0"]
    program = subprocess.Popen(
        [sys.executable, "-m", "zpipe", "ros2", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        sent = 0
        while (len(answers) < 20 or not any(each.status[0].level == b"\0" for each in states)) and time.monotonic() < until:
            assert program.poll() is None, program.communicate()
            message = Image(height=32, width=32, encoding="rgb8", step=96)
            message.header.frame_id, message.header.stamp.sec = "lens", sent % 100
            message.data = array("B", shown.images[sent % 100].transpose(1, 2, 0).tobytes())
            camera.publish(message)
            sent += 1
            rclpy.spin_once(node, timeout_sec=0.03)
    finally:
        program.send_signal(ended_by)
        out, err = program.communicate(timeout=PATIENCE_SECONDS)
    assert program.returncode == 0, err
    assert "Traceback" not in out + err
    assert {each.header.frame_id for each in answers} == {"lens"}
    right = [each.results[0].class_id == str(shown.labels[each.header.stamp.sec]) for each in answers]
    assert sum(right) / len(right) > 0.9
    assert all(0.0 < each.results[0].score <= 1.0 for each in answers)
    (status,) = states[-1].status
    assert (status.name, status.hardware_id) == ("zpipe: classification", "one")
