"""`zpipe node`."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import click

from zpipe.cli.completion import complete_rank
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, INSECURE, TOPOLOGY
from zpipe.cli.running import run_interruptible
from zpipe.errors import ConfigError


@cli.command(epilog=example("zpipe node --rank 2 --topology line4.yaml"))
@click.option("--rank", type=int, required=True, shell_complete=complete_rank, help="Which node of the topology this is.")
@TOPOLOGY
@click.option(
    "--executor",
    help="What runs this node's stages, instead of the topology's: `auto`, `trt`, `torch-cuda`, `onnx`, or MODULE:CLASS.",
)
@click.option("--device", help="What it runs them on, instead of the topology's: a GPU, a precision, or both, such as cuda:1/fp16.")
@click.option(
    "--trace",
    type=FILE,
    help="Record what this node's policy is told and answers, for `zpipe trace merge` and `zpipe replay`; no file is lost.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    envvar="ZPIPE_METRICS",
    show_envvar=True,
    help="Tell Prometheus of this node here: /metrics, /healthz, /readyz; a PORT alone is one of loopback, 0 a free one.",
)
@INSECURE
def node(
    rank: int, topology: str, executor: str | None, device: str | None, trace: Path | None, metrics: str | None, insecure: bool
) -> None:
    """Run one node until it is stopped: SIGTERM and Ctrl-C let it finish what it holds, a second one ends it at once."""
    from zpipe.runtime.node import Node, by_hand
    from zpipe.topology import load_topology

    loaded = load_topology(topology)
    if insecure:
        loaded = loaded.without_keys()
    if not 0 <= rank < len(loaded.nodes):
        raise ConfigError(f"{loaded.path}: --rank: found {rank}, expected one of 0 to {len(loaded.nodes) - 1}")
    if metrics:
        from zpipe.metrics import MetricsServer
    served = Node(by_hand(loaded), rank, waiting=click.echo, trace=trace, executor=executor, device=device)

    async def serve() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()

        def signalled() -> None:
            (hurry if stop.is_set() else stop).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, signalled)
        async with AsyncExitStack() as stack:
            if metrics:  # around the node: a port that is taken is told before stages are loaded, and draining can be watched
                telling = await stack.enter_async_context(MetricsServer(served, metrics))
                click.echo(f"node {rank} tells Prometheus at http://{telling.address}/metrics")
            await stack.enter_async_context(served)
            stages = ", ".join(map(str, served.topology.node(rank).stages))
            click.echo(f"node {rank} serves stage {stages} of {served.bundle.name} at {served.topology.node(rank).address}")
            await served.serve(stop)
            held = served.driver.policy.held_count
            if held:
                click.echo(f"node {rank} finishes the {held} tasks it holds; once more to end at once")
            drained = await served.drain(hurry=hurry)
            done = served.driver.policy.counts
        left = "" if drained else ", not all finished"
        click.echo(f"node {rank} stopped: {done.tasks_run} tasks run, {done.exited} answered here, {done.sent} handed on{left}")

    run_interruptible(serve())
