"""What a pipeline's start waits for - its own stages, the other ranks, the drift monitor - and who may be there already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from zpipe.bundle import Bundle
from zpipe.calibrate.drift import Monitor, Reference
from zpipe.errors import AddressInUse, ConfigError
from zpipe.executors.base import StageExecutor
from zpipe.runtime.launch import Launcher
from zpipe.topology import Topology


def monitor_of(bundle: Bundle, thresholds: tuple[float, ...] | None) -> Monitor | None:
    """Watches for drift from the bundle's calibration data; None without such data, or where thresholds move."""
    reference = None if thresholds is None else Reference.of(bundle, thresholds)
    return None if reference is None else Monitor(reference)


@contextmanager
def somebody_else(topology: Topology, rank: int) -> Iterator[None]:
    """While a source binds: an address in use is most likely that of a program that is this source already.

    Raises:
        ConfigError: it is, or another program has the port.
    """
    try:
        yield
    except AddressInUse as exc:
        source = topology.source_at(rank)
        assert source is not None
        others = " or ".join(other.label for other in topology.sources if other.rank != rank)
        raise ConfigError(
            f"address {exc.address} is in use: found a program that is {source.label} already, or another at its port, expected "
            f"none: one program is a source; stop that one{f', or be {others} (--source NAME)' if others else ''}"
        ) from exc


async def load_and_launch(
    make: Callable[[], StageExecutor | None], watch: Callable[[], Monitor | None], launcher: Launcher | None
) -> tuple[StageExecutor | None, Monitor | None, dict[int, str]]:
    """Loads this rank's stages while the other ranks start.

    On threads of its own, over when this is, cancelled or not: the event loop's would stay in the caller's program.

    Args:
        make: gives the executor; one that is made and not returned, since something else failed, is closed.
        watch: gives the drift monitor.
        launcher: of the other ranks, None where they are started elsewhere, or there are none.

    Returns:
        The executor, the monitor, and {rank: address} of the other ranks.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2, "zpipe-start") as threads:
        # Beside the rest: resampling the calibration split takes a slow board most of a second.
        watching = loop.run_in_executor(threads, watch)
        making = loop.run_in_executor(threads, make)
        given = False
        try:
            addresses = {} if launcher is None else await launcher.start()
            executor = await asyncio.shield(making)
            monitor = await asyncio.shield(watching)
            given = True
        finally:
            await asyncio.wait((watching, making))
            watching.exception()  # looked at, or asyncio complains where something else was raised before
            made = None if making.exception() is not None else making.result()
            if made is not None and not given:
                made.close()
    return executor, monitor, addresses
