"""The ROS 2 node on a stand-in for rclpy (`standin.py`): what comes in, what goes out, what ends it."""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.ros2 import standin
from tests.ros2.standin import Classification, CompressedImage, Header, Image, Node, Rclpy, Time, modules
from tests.runtime.mesh import HALF
from tests.test_cli import Refused, refused
from zpipe import Outcome, PipelineClosed, Result, cli, load_bundle
from zpipe.infer import Shaper
from zpipe.ros2.interface import import_ros
from zpipe.ros2.node import WARN_SECONDS, Classifier
from zpipe.ros2.parameters import Parameters

__all__ = ["refused"]

#: `[32, 32, 3]` RGB.
FRAME = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)


def image(pixels: npt.NDArray[np.uint8] = FRAME, *, seconds: int = 0, **fields: Any) -> Any:
    height, width = pixels.shape[:2]
    header = Header(stamp=Time(sec=seconds), frame_id="camera")
    given = {"encoding": "rgb8", "step": 3 * width, "data": array("B", pixels.tobytes()), **fields}
    return Image(header=header, height=height, width=width, **given)


@dataclass
class Offered:
    """A pipeline that answers when it is told to."""

    taken: list[tuple[npt.NDArray[Any], Callable[[Outcome], None]]] = field(default_factory=list)
    closed: bool = False

    def offer(self, x: npt.NDArray[Any], done: Callable[[Outcome], None], *, deadline: float | None = None) -> None:
        if self.closed:
            raise PipelineClosed("the pipeline is closed")
        self.taken.append((x, done))

    def answer(self, sample: int, kind: Any = "result", *, label: int = 3, stage: int = 2) -> None:
        result = Result(sample, label, f"digit {label}", 0.875, stage, 0.02, 0.0, 0.01, 1) if kind == "result" else None
        self.taken[sample][1](Outcome(sample, kind, 0.02, 1, result, "" if result else "busy"))


class AtOnce:
    """Shapes a picture in the callback, so that a test knows when it was done."""

    def __init__(self, work: Callable[[tuple[int, Any]], None]) -> None:
        self._work = work

    def put(self, thing: tuple[int, Any]) -> bool:
        self._work(thing)
        return False

    def close(self) -> None: ...


@dataclass
class Robot:
    rclpy: Rclpy
    node: Node
    pipeline: Offered
    clock: list[float]

    def see(self, *images: Any) -> None:
        for each in images:
            self.node.receive("/image", each)
        self.run()

    def run(self) -> None:
        """Callbacks that are ready."""
        while not self.rclpy.ready.empty():
            callback = self.rclpy.ready.get()
            assert callback is not None
            callback()

    @property
    def answers(self) -> list[tuple[int, str, float]]:
        sent = self.node.publishers["/classification"].sent
        assert all(len(each.results) == 1 and each.header.frame_id == "camera" for each in sent)
        return [(each.header.stamp.sec, each.results[0].class_id, each.results[0].score) for each in sent]

    def diagnostics(self) -> tuple[bytes, str, dict[str, str]]:
        self.node.timers[0]()
        message = self.node.publishers["/diagnostics"].sent[-1]
        (status,) = message.status
        assert (message.header.stamp.sec, status.name, status.hardware_id) == (7, "zpipe: classification", "line4")
        return status.level, status.message, {each.key: each.value for each in status.values}


@pytest.fixture
def rclpy(monkeypatch: pytest.MonkeyPatch) -> Rclpy:
    made = Rclpy()
    for name, module in modules(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def robot_with(rclpy: Rclpy, **parameters: Any) -> Robot:
    rclpy.init(args=[])
    node, pipeline, clock = rclpy.create_node("zpipe"), Offered(), [0.0]
    shaper = Shaper(load_bundle(HALF, verify=False).stages[0].input, 32)
    given = Parameters(**parameters)
    Classifier(import_ros(), node, pipeline, shaper, given, hardware="line4", shaping=AtOnce, now=lambda: clock[0])
    return Robot(rclpy, node, pipeline, clock)


@pytest.fixture
def robot(rclpy: Rclpy) -> Robot:
    return robot_with(rclpy)


# ---- pictures and answers ----------------------------------------------------------------------


def test_a_picture_is_offered_as_stage_0_takes_it_and_answered_under_its_header(robot: Robot) -> None:
    robot.see(image(seconds=41))
    (taken, _), *others = robot.pipeline.taken
    assert others == []
    assert np.array_equal(taken, FRAME.transpose(2, 0, 1))
    assert robot.answers == []
    robot.pipeline.answer(0)
    robot.run()
    assert robot.answers == [(41, "digit 3", 0.875)]
    assert type(robot.node.publishers["/classification"].sent[0]) is Classification


def test_images_come_with_the_profile_of_sensors_and_only_the_newest_waits(robot: Robot) -> None:
    _, _, profile = robot.node.subscriptions["/image"]
    assert (profile.reliability, profile.depth) == ("best effort", 1)
    assert robot.rclpy.qos.qos_profile_sensor_data.depth == 5  # which others use, too


def test_an_answer_that_a_newer_one_overtook_is_not_published(robot: Robot) -> None:
    robot.see(*[image(seconds=number) for number in range(4)])
    for sample in (1, 0, 3, 2):
        robot.pipeline.answer(sample)
        robot.run()
    assert [seconds for seconds, _, _ in robot.answers] == [1, 3]
    assert robot.diagnostics()[2]["overtaken"] == "2"


def test_a_picture_without_a_result_gives_no_classification(robot: Robot) -> None:
    robot.see(image(), image(), image())
    for sample, kind in enumerate(("rejected", "expired", "failed")):
        robot.pipeline.answer(sample, kind)
    robot.run()
    assert robot.answers == []
    level, said, values = robot.diagnostics()
    assert (level, said) == (b"\1", "images and no answers")
    assert [values[key] for key in ("images", "result", "rejected", "expired", "failed")] == ["3", "0", "1", "1", "1"]


def test_answers_may_come_on_another_thread(robot: Robot) -> None:
    robot.see(image())
    thread = threading.Thread(target=robot.pipeline.answer, args=(0,))
    thread.start()
    thread.join()
    assert robot.answers == []  # what is ROS' is done where it spins
    robot.run()
    assert len(robot.answers) == 1


def test_compressed_pictures_come_on_the_topic_that_ROS_gives_them(rclpy: Rclpy) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    import io

    rclpy.remaps["image"] = "/front/image_raw"
    robot = robot_with(rclpy, image_transport="compressed")
    stored = io.BytesIO()
    pillow.fromarray(FRAME).save(stored, "PNG")
    for content in (stored.getvalue(), b"", stored.getvalue()[:-60], b"\xff\xd8nonsense"):
        robot.node.receive("/front/image_raw/compressed", CompressedImage(format="rgb8; png", data=array("B", content)))
    robot.run()
    (taken, _), *others = robot.pipeline.taken
    assert others == []
    assert np.array_equal(taken, FRAME.transpose(2, 0, 1))
    assert robot.diagnostics()[2]["unreadable"] == "3"
    (line,) = robot.node.log.lines
    assert line.startswith("skipped /front/image_raw/compressed frame 2: found no image that can be read (")


# ---- pictures that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"encoding": "yuv422"}, {"step": 95}, {"data": array("B", bytes(5))}, {"data": array("B")}, {"encoding": "\n" * 999}]
)
def test_a_camera_of_bad_pictures_is_told_of_once_in_a_while(robot: Robot, fields: dict[str, Any]) -> None:
    robot.see(*[image(**fields) for _ in range(300)])
    (line,) = robot.node.log.lines
    assert line.startswith("skipped /image: found ")
    assert line.isprintable()
    robot.clock[0] = WARN_SECONDS
    robot.see(image(**fields), image())
    assert len(robot.node.log.lines) == 2
    assert robot.node.log.lines[1].endswith("(299 more since the last such line)")
    assert len(robot.pipeline.taken) == 1
    assert robot.diagnostics()[2]["unreadable"] == "301"


def test_no_pixels_are_no_picture(robot: Robot) -> None:
    robot.see(image(FRAME[:0]), image(FRAME[:, :0]))
    assert robot.pipeline.taken == []
    assert robot.diagnostics()[2]["unreadable"] == "2"


# ---- diagnostics -------------------------------------------------------------------------------


def test_diagnostics_tell_rate_latency_and_exits_of_the_last_second(robot: Robot) -> None:
    robot.see(*[image() for _ in range(3)])
    for sample, stage in enumerate((0, 0, 4)):
        robot.pipeline.answer(sample, stage=stage)
    robot.run()
    robot.clock[0] = 2.0
    level, said, values = robot.diagnostics()
    assert (level, said) == (b"\0", "1.5 answers a second")
    assert {
        "images": "3",
        "result": "3",
        "exit_stage 0": "2",
        "exit_stage 4": "1",
        "latency_ms mean": "20.0",
    }.items() <= values.items()
    assert robot.diagnostics()[:2] == (b"\1", "no image on /image")


# ---- its life ----------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["zpipe", "ros2", *arguments])
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture
def local(tmp_path: Path, rclpy: Rclpy) -> Path:
    topology = tmp_path / "one.yaml"
    topology.write_text(f"name: one\nbundle: {HALF}\nnodes: [{{rank: 0, stages: [0, 1, 2, 3, 4]}}]\n")
    rclpy.given["topology"] = str(topology)
    return topology


def test_the_command_classifies_until_ROS_is_shut_down_and_leaves_no_thread(
    local: Path, rclpy: Rclpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = load_bundle(HALF).evaluation()

    def spinning(node: Node) -> None:
        answers = node.publishers["/classification"]
        for number in range(3):
            node.receive("/image", image(shown.images[number].transpose(1, 2, 0), seconds=number))

        def seen() -> None:
            rclpy.ready.put(None if answers.sent and answers.sent[-1].header.stamp.sec == 2 else seen)

        seen()

    rclpy.spinning = spinning
    before = threading.enumerate()
    assert command(monkeypatch, "--ros-args", "-r", "image:=/image") == 0
    (node,) = rclpy.nodes
    newest = node.publishers["/classification"].sent[-1]
    assert newest.results[0].class_id == str(shown.labels[2])
    assert node.destroyed
    assert not rclpy.up
    assert threading.enumerate() == before


def test_ctrl_c_ends_it_with_0(local: Path, rclpy: Rclpy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(node: Node) -> None:
        raise KeyboardInterrupt

    rclpy.spinning = interrupted
    assert command(monkeypatch) == 0
    assert rclpy.nodes[0].destroyed
    assert not rclpy.up


@pytest.mark.parametrize(("up", "code"), [(False, 0), (True, 1)])
def test_a_callback_that_a_shutdown_overtook_is_no_failure(
    up: bool, code: int, local: Path, rclpy: Rclpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(node: Node) -> None:
        rclpy.up = up
        raise RuntimeError("publisher's context is invalid")

    rclpy.spinning = overtaken
    assert command(monkeypatch) == code
    assert rclpy.nodes[0].destroyed


def test_a_pipeline_that_is_gone_ends_the_node(robot: Robot) -> None:
    robot.pipeline.closed = True
    with pytest.raises(PipelineClosed):
        robot.see(image())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"deadline": 1}, "parameter deadline: found a value of another type, expected float, such as deadline:=1.0"),
        ({"attach": "yes"}, "parameter attach: found a value of another type, expected bool, such as attach:=false"),
        ({"fit": "round"}, "parameter fit: found 'round', expected one of stretch, crop, ink"),
        ({"image_transport": "theora"}, "parameter image_transport: found 'theora', expected one of raw, compressed"),
        ({"deadline": -1.0}, "deadline: found -1.0, expected seconds above 0"),
        ({"topology": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_a_wrong_parameter_is_refused_in_a_line(
    given: dict[str, Any], found: str, local: Path, rclpy: Rclpy, refused: Refused
) -> None:
    rclpy.given |= given
    assert found in refused("ros2")
    assert rclpy.nodes[0].destroyed
    assert not rclpy.up


def test_arguments_that_are_not_of_ros_are_refused(rclpy: Rclpy, refused: Refused) -> None:
    assert "found 'line4.yaml', expected ROS arguments" in refused("ros2", "line4.yaml")
    assert "found unknown ROS arguments: '--wrong'" in refused("ros2", "--ros-args", "--wrong")
    assert rclpy.nodes == []


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("rclpy", "found no rclpy that Python 3.* /opt/ros/.ROS_DISTRO/setup.bash"),
        ("vision_msgs.msg", "found no vision_msgs .* apt install ros-.ROS_DISTRO-vision-msgs"),
    ],
)
def test_where_ros_is_absent_a_line_says_how_to_get_it(
    missing: str, found: str, rclpy: Rclpy, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    import re

    monkeypatch.setitem(sys.modules, missing, None)
    assert re.search(found, refused("ros2"))


def test_the_stand_in_refuses_what_ros_messages_refuse() -> None:
    with pytest.raises(AssertionError, match="no field"):
        standin.ObjectHypothesis(id="3")
    with pytest.raises(AssertionError, match="score"):
        standin.ObjectHypothesis(score=np.float32(1))
