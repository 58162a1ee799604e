"""The dashboard's queries asked of a real Prometheus that scrapes live nodes; promtool's opinion of what they tell.

Skipped where there is no `prometheus` or `promtool` on the path (Debian: `apt install prometheus`).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import AsyncExitStack, closing
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

pytest.importorskip("prometheus_client")

from tests.metrics.looks import LINE, get, scraped, server
from tests.metrics.test_dashboard import panels
from tests.runtime.mesh import live, run, topology
from zpipe.metrics.dashboard import dashboard

#: Scrapes until rates of two seconds can be computed.
SCRAPES = 15
#: These panels have nothing to show where all goes well, or the admission sets no limit.
EMPTY = {"Bandwidth, as measured"}

needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} on the path") for name in ("promtool", "prometheus")
}


@needs["promtool"]
@pytest.mark.parametrize("rank", [0, 1])
def test_promtool_finds_no_fault(rank: int) -> None:
    async def main() -> bytes:
        async with scraped(rank) as (_, telling):
            return (await get(telling, "/metrics")).body

    page = []

    async def told() -> None:
        page.append(await main())

    run(told)
    checked = subprocess.run(["promtool", "check", "metrics"], input=page[0], capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.slow
@needs["prometheus"]
def test_every_panel_has_something_to_show(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(topology(LINE)) as mesh, AsyncExitStack() as stack:
            telling = [await stack.enter_async_context(server(driver)) for driver in mesh.drivers.values()]
            port = _free_port()
            process = await _prometheus(tmp_path, port, [each.address for each in telling])
            try:
                sent = 0
                while await _scrapes(port) < SCRAPES * len(telling):
                    mesh.submit(sent % 50)
                    sent += 1
                    await mesh.until(sent)
                    await asyncio.sleep(0.02)  # the load's rhythm, nothing is waited for
                answers = {panel["title"]: await _answers(port, panel) for panel in panels()}
            finally:
                process.terminate()
                await process.wait()
            assert {title for title, found in answers.items() if not found} == EMPTY
            assert len(answers) == len([panel for panel in dashboard()["panels"] if panel["type"] != "row"])
            assert answers["Nodes ready"] == ["3"]
            assert answers["Neighbours missing"] == ["0"]
            assert answers["Samples with a result"] == ["1"]

    run(main)


def _free_port() -> int:
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _prometheus(folder: Path, port: int, targets: list[str]) -> asyncio.subprocess.Process:
    job = {"job_name": "zpipe", "scrape_interval": "200ms", "scrape_timeout": "200ms", "static_configs": [{"targets": targets}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}), encoding="utf-8")
    return await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _ask(port: int, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers; it raises where it does not understand the query."""

    def ask() -> list[dict[str, Any]]:
        with urlopen(f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': query})}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    return await asyncio.to_thread(ask)


async def _scrapes(port: int) -> float:
    try:
        found = await _ask(port, "sum(count_over_time(up[1m]))")
    except OSError:  # it starts
        return 0.0
    return float(found[0]["value"][1]) if found else 0.0


async def _answers(port: int, panel: dict[str, Any]) -> list[str]:
    """Values of all queries of a panel."""
    found = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "2s").replace("$__range", "2s")
        query = query.replace("$topology", "test").replace("$rank", ".*")
        found += [each["value"][1] for each in await _ask(port, query)]
    return found
