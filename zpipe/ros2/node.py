"""The node: what comes on `image` goes to a pipeline, what it answers goes out on `classification`.

No callback waits or computes. Pictures are shaped and offered on a thread of their own (1080p takes 12 ms of a desk's core), the
newest of those that wait; where the network is busy, the newest takes the place of the one that waits there, too. Messages go out
on the executor's thread: the pipeline's own only puts outcomes down and wakes it.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy.typing as npt

from zpipe.errors import ConfigError, one_line
from zpipe.infer import Item, Shaper, Skipped
from zpipe.model import Outcome, Result
from zpipe.ros2.images import pixels_of
from zpipe.ros2.interface import Ros
from zpipe.ros2.newest import Newest
from zpipe.ros2.parameters import TRANSPORTS, Parameters

#: A camera that sends nothing useful is told of once in this time, not at each frame.
WARN_SECONDS = 10.0
#: How often the diagnostics are published.
DIAGNOSTICS_SECONDS = 1.0
#: Answers that wait for a subscriber that is slow to take them; ROS's own default for a reliable topic.
DEPTH = 10


class Offering(Protocol):
    """What the node asks of a pipeline: `SyncPipeline` has it."""

    def offer(self, x: npt.NDArray[Any], done: Callable[[Outcome], None], *, deadline: float | None = None) -> None:
        """Submits without waiting."""


class Shaping(Protocol):
    """What the node asks of a thread: `Newest` has it."""

    def put(self, thing: tuple[int, Any]) -> bool:
        """Takes a picture's number and message; whether an earlier one is given up for it."""

    def close(self) -> None:
        """Ends it."""


class Classifier:
    """Publisher, subscription and diagnostics of one node, destroyed with it; closed before the pipeline is."""

    def __init__(
        self,
        ros: Ros,
        node: Any,
        pipeline: Offering,
        shaper: Shaper,
        parameters: Parameters,
        *,
        hardware: str,
        shaping: Callable[[Callable[[tuple[int, Any]], None]], Shaping] = Newest,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens the topics.

        Args:
            ros: the packages.
            node: an rclpy Node.
            pipeline: started.
            shaper: for its bundle.
            parameters: the node's.
            hardware: the topology's name, under which the diagnostics stand.
            shaping: makes the thread.
            now: seconds, for warnings and rates.
        """
        self._ros = ros
        self._node = node
        self._pipeline = pipeline
        self._shaper = shaper
        self._now = now
        self._hardware = hardware
        self._ended: SimpleQueue[tuple[Any, Outcome]] = SimpleQueue()
        self._newest = -1  #: the sample last published
        self._counts: Counter[str] = Counter()  #: since the start: outcomes by their kind, and what _status names
        self._broken: Exception | None = None
        self._period = _Period(now())
        self._quiet_until = float("-inf")
        self._unsaid = 0
        compressed = parameters.image_transport == "compressed"
        self._topic = node.resolve_topic_name("image") + TRANSPORTS[parameters.image_transport]
        self._read = self._decoded if compressed else self._pixels
        self._answers = node.create_publisher(ros.vision.Classification, "classification", DEPTH)
        self._diagnostics = node.create_publisher(ros.diagnostic.DiagnosticArray, "/diagnostics", DEPTH)
        self._wake = node.create_guard_condition(self._publish)
        self._shaping = shaping(self._offer)
        newest = copy.copy(ros.rclpy.qos.qos_profile_sensor_data)
        newest.depth = 1  # a frame that waited for its callback is an old one
        kind = ros.sensor.CompressedImage if compressed else ros.sensor.Image
        node.create_subscription(kind, self._topic, self._take, newest)
        node.create_timer(DIAGNOSTICS_SECONDS, self._diagnose)

    def close(self) -> None:
        """Ends the shaping. May be called twice."""
        self._shaping.close()

    # ---- pictures in -----------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        """One message of the camera."""
        self._counts["images"] += 1
        if self._shaping.put((self._counts["images"], message)):
            self._counts["dropped"] += 1

    def _offer(self, picture: tuple[int, Any]) -> None:
        """On a thread of its own: shapes one picture."""
        number, message = picture
        try:
            read = self._read(message, number)
            if isinstance(read, Skipped):
                self._counts["unreadable"] += 1
                self._warn(read.cause)
            else:
                self._pipeline.offer(read.image, partial(self._on_ended, message.header))
        except Exception as exc:  # the pipeline is gone for good, or a mistake of ours: either ends the node, where it spins
            self._broken = exc
            self._wake.trigger()

    def _pixels(self, message: Any, number: int) -> Item | Skipped:
        try:
            return self._shaper.from_pixels(pixels_of(message), self._topic, number)
        except ConfigError as exc:
            return Skipped(f"{self._topic}: {exc}")

    def _decoded(self, message: Any, number: int) -> Item | Skipped:
        return self._shaper.from_encoded(bytes(message.data), self._topic, number)

    def _warn(self, cause: str) -> None:
        now = self._now()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        self._node.get_logger().warning(f"skipped {one_line(cause)}{more}")
        self._quiet_until, self._unsaid = now + WARN_SECONDS, 0

    # ---- answers out -----------------------------------------------------------------------------

    def _on_ended(self, header: Any, outcome: Outcome) -> None:
        """On the pipeline's thread: no more than this."""
        self._ended.put((header, outcome))
        self._wake.trigger()

    def _publish(self) -> None:
        """Raises what went wrong on the other threads, which ends the executor's spinning."""
        while True:
            try:
                header, outcome = self._ended.get_nowait()
            except Empty:
                break
            self._counts[outcome.kind] += 1
            if outcome.result is None:
                continue
            if outcome.result.sample < self._newest:
                self._counts["overtaken"] += 1  # whoever acts on the newest answer must not be led back by an older frame's
                continue
            self._newest = outcome.result.sample
            self._period.add(outcome.result)
            hypothesis = self._ros.vision.ObjectHypothesis(
                class_id=outcome.result.class_name, score=float(outcome.result.confidence)
            )
            self._answers.publish(self._ros.vision.Classification(header=header, results=[hypothesis]))
        if self._broken is not None:
            raise self._broken

    # ---- diagnostics -----------------------------------------------------------------------------

    def _diagnose(self) -> None:
        counts, now = self._counts, self._now()
        period, self._period = self._period, _Period(now)
        period.images = counts["images"] - period.images
        self._period.images = counts["images"]
        message = self._ros.diagnostic.DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = [self._status(period, now)]
        self._diagnostics.publish(message)

    def _status(self, period: _Period, now: float) -> Any:
        kinds = self._ros.diagnostic.DiagnosticStatus
        if period.results:
            seconds = max(now - period.began, 1e-3)
            level, said = kinds.OK, f"{len(period.results) / seconds:.1f} answers a second"
        elif period.images:
            level, said = kinds.WARN, "images and no answers"
        else:
            level, said = kinds.WARN, f"no image on {self._topic}"
        names = ("images", "dropped", "unreadable", "result", "rejected", "expired", "failed", "overtaken")
        values = {**{name: str(self._counts[name]) for name in names}, **period.values()}
        return kinds(
            level=level,
            name=f"{self._node.get_name()}: classification",
            message=said,
            hardware_id=self._hardware,
            values=[self._ros.diagnostic.KeyValue(key=key, value=value) for key, value in values.items()],
        )


class _Period:
    """The answers published since the last diagnostics.

    Attributes:
        began: when, seconds.
        images: how many there were before.
        results: the answers.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.images = 0
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        self.results.append(result)

    def values(self) -> dict[str, str]:
        """Latency and exits, where there was an answer."""
        if not self.results:
            return {}
        latencies = [1e3 * result.latency_seconds for result in self.results]
        exits = Counter(result.exit_stage for result in self.results)
        return {
            "latency_ms mean": f"{sum(latencies) / len(latencies):.1f}",
            "latency_ms max": f"{max(latencies):.1f}",
            **{f"exit_stage {stage}": str(times) for stage, times in sorted(exits.items())},
        }
