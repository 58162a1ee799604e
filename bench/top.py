"""What `zpipe top` shows of a mesh of three emulated Raspberry Pis 3, one of which dies: as on a terminal.

    python -m bench.top    half a minute; writes bench/results/top.svg and top.txt

Node 2 is killed 12 s after the load began and comes back 6 s later. The text has the looks before, while it is gone and after, the
picture the one while it is gone. The boards are emulated: times are theirs, the figures for memory are this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import shlex
import sys
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from zpipe.runtime import whereabouts
from zpipe.top import Snapshot, render, watch
from zpipe.topology import load_topology

RESULTS = Path(__file__).parent / "results"
TOPOLOGY = "mesh3.yaml"
LOAD = ("--executor", "emulated", "--device", "raspberry-pi-3", "--rate", "110", "--duration", "30")
FAULT = ("--chaos", "kill 6s node 2 at 12s")
WIDTHS = (80, 140)
FOOT = "every 1 s · q ends"


async def main() -> None:
    command = [sys.executable, "-m", "zpipe", "bench", "--topology", TOPOLOGY, *LOAD, *FAULT]
    bench = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
    try:
        while whereabouts.find(load_topology(TOPOLOGY)) is None:
            assert bench.returncode is None, "the run ended; run it by hand: " + shlex.join(command)
            await asyncio.sleep(0.2)
        looks = await kept_looks()
    finally:
        with contextlib.suppress(ProcessLookupError):
            bench.terminate()
        await bench.wait()
    text = "\n".join(f"{'─' * width}\n{shown(look, width)}" for look in looks for width in WIDTHS)
    (RESULTS / "top.txt").write_text(f"python -m bench.top: {shlex.join(command[2:])}\n\n{text}", encoding="utf-8")
    console = Console(record=True, width=WIDTHS[1], file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(render(looks[1], width=WIDTHS[1], foot=FOOT))
    picture = console.export_svg(title=f"zpipe top --topology {TOPOLOGY}", theme=MONOKAI)
    picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL)  # fetched from elsewhere; any fixed-width font does
    (RESULTS / "top.svg").write_text(picture, encoding="utf-8")


async def kept_looks() -> list[Snapshot]:
    """Before, while node 2 is gone, and after."""
    last: Snapshot | None = None
    looks: list[Snapshot] = []
    async with aclosing(watch(TOPOLOGY, every=1.0)) as snapshots:
        async for snapshot in snapshots:
            node = snapshot.nodes[2]
            print(f"{snapshot.seconds:3.0f} s: node 2 is {node.state}")
            if not looks and node.state == "gone" and (node.seconds or 0.0) >= 3.0:
                assert last is not None
                looks += [last, snapshot]
            if looks and node.state == "back" and (node.seconds or 0.0) >= 3.0:
                return [*looks, snapshot]
            if node.state == "up":
                last = snapshot
    raise AssertionError("it goes on until it is left")


def shown(snapshot: Snapshot, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(render(snapshot, width=width, foot=FOOT))
    assert isinstance(console.file, io.StringIO)
    return "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())


if __name__ == "__main__":
    asyncio.run(main())
