"""Ranks as child processes: starting, failing to start, crashing, hanging, and outliving nobody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import zpipe
from tests.runtime.mesh import HALF, PATIENCE_SECONDS, bundle, run, turns_until
from zpipe.errors import ConfigError, ZpipeError
from zpipe.runtime import launch
from zpipe.runtime.launch import Launcher, Site
from zpipe.topology import Topology, from_dict

ROOT = Path(__file__).parents[2]
#: Two children: the source keeps stage 0.
STAGES = ([0], [1, 2], [3, 4])


def topology() -> Topology:
    nodes = [{"rank": rank, "stages": stages} for rank, stages in enumerate(STAGES)]
    return from_dict({"name": "test", "bundle": str(HALF), "nodes": nodes, "links": "line"})


def with_executor(rank: int, executor: str) -> Topology:
    whole = topology()
    nodes = tuple(replace(node, executor=executor) if node.rank == rank else node for node in whole.nodes)
    return replace(whole, nodes=nodes)


def started(p: zpipe.Pipeline) -> Launcher:
    assert p.launcher is not None
    return p.launcher


def codes(launcher: Launcher) -> list[int | None]:
    """Exit codes by rank; None: still there."""
    return [launcher.processes[rank].returncode for rank in launcher.ranks]


def child(text: str) -> subprocess.CompletedProcess[str]:
    """A child that reads `text` and then the end of its input."""
    return subprocess.run(
        [sys.executable, "-m", "zpipe.runtime.child"],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=ROOT,
    )


def test_children_serve_and_end_with_the_pipeline() -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            images = p.bundle.evaluation().images[:30]
            await asyncio.gather(*[p.submit(image) for image in images])
            assert codes(started(p)) == [None, None]
            assert not started(p).crashed.done()
        assert codes(started(p)) == [0, 0]

    run(main)


def test_nobody_submits_at_further_sources_of_a_local_pipeline() -> None:
    nodes = [{"rank": rank, "stages": stages} for rank, stages in enumerate(([0], [1, 2, 3, 4], [0]))]
    sources = [{"rank": 0}, {"rank": 2, "name": "mapping"}]
    two = from_dict({"name": "two", "bundle": str(HALF), "nodes": nodes, "links": "line", "sources": sources})

    async def main() -> None:
        async with zpipe.Pipeline.local(two) as p:
            await p.submit(p.bundle.evaluation().images[0])
            stats = await p.stats()
            assert [stats[rank]["delivery"]["submitted"] for rank in (0, 2)] == [1, 0]
            started(p).processes[2].kill()
            with pytest.raises(ZpipeError, match=r"^source mapping \(rank 2\) ended by itself \(exit code -9\)$"):
                await started(p).crashed
        assert codes(started(p)) == [0, -9]

    run(main)


def test_rank_with_a_site_is_started_there_and_the_others_on_this_machine() -> None:
    async def main() -> None:
        sites = {1: Site("127.0.0.3:0", ("env", "ZPIPE_TEST_SITE=there"))}
        async with zpipe.Pipeline.local(topology(), sites=sites) as p:
            assert [node.host for node in p.topology.nodes] == ["127.0.0.1", "127.0.0.3", "127.0.0.1"]
            processes = [psutil.Process(started(p).processes[rank].pid) for rank in (1, 2)]
            assert [process.environ().get("ZPIPE_TEST_SITE") for process in processes] == ["there", None]
            await p.submit(p.bundle.evaluation().images[0])
        assert codes(started(p)) == [0, 0]

    run(main)


def test_children_find_an_executor_where_their_parent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("from pathlib import Path", "from zpipe.executors.onnx import OnnxExecutor", "class Own(OnnxExecutor):")
    closes = "    def close(self): Path(__file__).with_name('closed').touch()"
    (tmp_path / "beside_my_script.py").write_text("\n".join((*lines, closes)))
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        async with zpipe.Pipeline.local(with_executor(1, "beside_my_script:Own")) as p:
            images = p.bundle.evaluation().images[:10]
            await asyncio.gather(*[p.submit(image) for image in images])
        assert (tmp_path / "closed").exists()

    run(main)


def test_child_that_cannot_start_is_one_line_and_the_others_end() -> None:
    async def main() -> None:
        launcher = Launcher(with_executor(2, "onyx"), bundle(), [1, 2])
        with pytest.raises(ConfigError, match=r"^node 2: executor: found 'onyx', expected one of ") as caught:
            await launcher.start()
        await launcher.aclose()
        assert "\n" not in str(caught.value)
        assert codes(launcher) == [0, 2]

    run(main)


@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        ("exit 3", r"^node 1 ended at start with exit code 3; its own message", 3),
        ("exec cat > /dev/null", r"^node 1 ended at start with exit code -9; its own message", -9),  # lives on with its pipe closed
        ("cat > /dev/null", r"^node 1 did not start within 0 s; set ZPIPE_LOG=DEBUG", 0),
    ],
)
def test_child_that_says_nothing_is_given_up_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str, code: int
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if "start within" in message:
        monkeypatch.setattr(launch, "START_SECONDS", 0.3)
    if code == -9:
        monkeypatch.setattr(launch, "STOP_SECONDS", 0.1)

    async def main() -> None:
        launcher = Launcher(topology(), bundle(), [1])
        with pytest.raises(ConfigError, match=message) as caught:
            await launcher.start()
        await launcher.aclose()
        assert "\n" not in str(caught.value)
        assert codes(launcher) == [code]

    run(main)


def test_failed_start_of_a_pipeline_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise zpipe.BundleError("stage0.onnx: broken")

    async def main() -> None:
        p = zpipe.Pipeline.local(topology())
        monkeypatch.setattr("zpipe.runtime.pipeline.executor_for", broken)
        with pytest.raises(zpipe.BundleError, match="broken"):
            await p.__aenter__()
        assert codes(started(p)) == [0, 0]

    run(main)


def test_start_that_is_cancelled_leaves_no_process() -> None:
    async def main() -> None:
        p = zpipe.Pipeline.local(topology())
        opening = asyncio.ensure_future(p.__aenter__())
        await turns_until(lambda: p.launcher is not None and len(p.launcher.processes) == 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert None not in codes(started(p))

    run(main)


def test_crash_of_a_child_is_told_with_its_rank_and_exit_code() -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            launcher = started(p)
            launcher.processes[2].kill()
            with pytest.raises(ZpipeError, match=r"^node 2 ended by itself \(exit code -9\)$"):
                await launcher.crashed
            assert (await p.submit(p.bundle.evaluation().images[0])).exit_stage >= 0  # it leaves before the gap
        assert codes(launcher) == [0, -9]

    run(main)


def test_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            launcher = started(p)
            monkeypatch.setattr(launch, "STOP_SECONDS", 0.5)
            launcher.processes[1].send_signal(signal.SIGSTOP)
        code, other = codes(launcher)
        assert code == -9
        assert other in (0, -9)  # a busy machine may take it longer than half a second

    run(main)


# ---- faults on purpose -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_rank_that_was_ended_on_purpose_is_no_crash_and_comes_back_at_its_address(end: str) -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            launcher, first = started(p), started(p).processes[2]
            getattr(launcher, end)(2)
            await launcher.restart(2)
            assert first.returncode == (-9 if end == "kill" else 0)
            await p.driver.peers.complete.wait()
            found = {stats["rank"]: stats for stats in await p.stats()}
            assert (sorted(found), launcher.restarts) == ([0, 1, 2], {2: 1})
            images = p.bundle.evaluation().images[:30]
            results = await asyncio.gather(*[p.submit(image) for image in images])
            assert max(result.exit_stage for result in results) >= 3  # the new one answers
            assert not launcher.crashed.done()
            launcher.processes[2].kill()  # nobody ordered this one
            with pytest.raises(ZpipeError, match=r"^node 2 ended by itself"):
                await launcher.crashed

    run(main)


def test_restart_of_a_rank_that_lives_ends_it_in_order_first() -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            first = started(p).processes[1]
            await started(p).restart(1)
            assert first.returncode == 0
            assert not started(p).crashed.done()

    run(main)


def test_paused_rank_does_nothing_until_it_is_resumed() -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            launcher = started(p)
            launcher.pause(1)
            status = psutil.Process(launcher.processes[1].pid).status
            await turns_until(lambda: status() == psutil.STATUS_STOPPED)
            assert [stats["rank"] for stats in await p.stats(timeout=0.2)] == [0, 2]
            launcher.resume(1)
            assert [stats["rank"] for stats in await p.stats()] == [0, 1, 2]

    run(main)


def test_paused_rank_ends_in_order_with_the_pipeline() -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(topology()) as p:
            started(p).pause(1)
        assert codes(started(p)) == [0, 0]

    run(main)


def test_ranks_are_told_detours_of_their_own() -> None:
    async def main() -> None:
        told: dict[int, str] = {}

        async def detours(addresses: Mapping[int, str]) -> dict[int, dict[int, str]]:
            told.update(addresses)
            return {0: {2: "127.0.0.9:1"}, 1: {0: "127.0.0.8:1"}}  # not neighbours, or not called: nothing breaks

        async with zpipe.Pipeline.local(topology(), detours=detours) as p:
            assert sorted(told) == [0, 1, 2]
            assert [node.address for node in p.topology.nodes] == [told[0], told[1], "127.0.0.9:1"]

    run(main)


# ---- the parent's death ------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
def test_children_end_when_their_parent_is_killed(paused: bool) -> None:
    if paused and sys.platform != "linux":
        pytest.skip("the kernel tells a stopped child of its parent's death on Linux only")
    code = (
        "import asyncio, zpipe\n"
        "from tests.runtime.test_launch import started, topology\n"
        "async def main():\n"
        "    async with zpipe.Pipeline.local(topology()) as p:\n"
        f"        {paused} and started(p).pause(2)\n"
        "        print(*[process.pid for process in started(p).processes.values()], flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert alive == []


# ---- the child's side --------------------------------------------------------------------------


def test_child_without_a_parent_ends_at_once() -> None:
    done = child("")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_child_whose_parent_goes_before_the_addresses_ends() -> None:
    done = child(json.dumps({"topology": topology().to_dict(), "rank": 2, "bundle": str(HALF)}) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(json.loads(done.stdout)) == ["address"]


@pytest.mark.parametrize(
    ("spec", "code", "error"),
    [
        (
            {"topology": topology().to_dict(), "rank": 1, "bundle": "no-such-bundle"},
            2,
            "bundle 'no-such-bundle': found no manifest",
        ),
        ({"topology": {"nodes": []}, "rank": 1, "bundle": str(HALF)}, 2, "topology: nodes: found no nodes"),
        ({"rank": 1}, 1, "unexpected KeyError: 'topology'"),
    ],
)
def test_child_says_what_is_wrong_in_one_line_to_its_parent_only(spec: dict[str, Any], code: int, error: str) -> None:
    done = child(json.dumps(spec) + "\n")
    assert (done.returncode, done.stderr) == (code, "")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["error"].startswith(error)
