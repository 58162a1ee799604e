"""The HTTP face of a node: right answers, and scrapers that mean no good."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.request import urlopen

import pytest

import zpipe

pytest.importorskip("prometheus_client")

from tests.metrics.looks import connected, get, say, scraped, server
from tests.runtime.mesh import HALF, image, run, turns_until
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.metrics import http
from zpipe.metrics import server as serving
from zpipe.policy.messages import DrainStarted
from zpipe.topology import load_topology, override


def test_health_and_readiness_tell_why_not() -> None:
    async def main() -> None:
        async with scraped(1) as (mesh, telling):
            assert (await get(telling, "/healthz")).status == (await get(telling, "/readyz?verbose")).status == 200
            mesh.drivers[1].emit(DrainStarted())
            draining = await get(telling, "/readyz")
            assert (draining.status, draining.headers["Content-Type"]) == (503, "application/json")
            assert draining.plain["why"] == ["it finishes what it holds and takes nothing more"]
            assert (await get(telling, "/healthz")).plain == {"status": "alive", "why": [], "missing": [], "rank": 1}
            assert (await get(telling, "/metrics")).status == 200

    run(main)


def test_lost_executor_wants_a_restart() -> None:
    async def main() -> None:
        async with scraped(1) as (mesh, telling):
            mesh.executors[1].deadly = {2}
            mesh.submit(2)
            await turns_until(lambda: not mesh.drivers[1].policy.serving)
            said = await get(telling, "/healthz")
            assert (said.status, said.plain["status"]) == (503, "not alive")
            assert said.plain["why"] == ["its executor was lost; a restart loads it anew"]
            assert (await get(telling, "/readyz")).status == 503

    run(main)


def test_pipeline_of_a_synchronous_program_is_told_of() -> None:
    with zpipe.SyncPipeline.local(override(load_topology("local"), bundle=str(HALF))) as pipeline:
        pipeline.submit(image(0))
        with zpipe.MetricsServer(pipeline, "0") as telling, urlopen(f"http://{telling.address}/metrics", timeout=30.0) as page:
            assert b'zpipe_source_ended_samples_total{outcome="result",rank="0",topology="local"} 1.0' in page.read()
        with pytest.raises(OSError, match="refused"):
            urlopen(f"http://{telling.address}/", timeout=30.0)


def test_a_server_is_entered_as_its_pipeline_is() -> None:
    topology = load_topology("local")
    with pytest.raises(TypeError, match="used as `async with`"):
        zpipe.MetricsServer(zpipe.Pipeline.local(topology), "0").__enter__()
    with pytest.raises(TypeError, match="used as `with`"):
        run(zpipe.MetricsServer(zpipe.SyncPipeline.local(topology), "0").__aenter__)


def test_node_that_loads_its_stages_says_so() -> None:
    async def main() -> None:
        async with server(None) as telling:
            assert (await get(telling, "/healthz")).status == 200
            assert (await get(telling, "/readyz")).plain["why"] == ["it has not started yet"]
            assert (await get(telling, "/metrics")).status == 503

    run(main)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + 2 * http.HEAD_BYTES * b"x", 431),
    ],
)
def test_what_is_no_scrape_gets_its_status(text: bytes, status: int) -> None:
    async def main() -> None:
        async with server(None) as telling:
            said = await say(telling, text)
            assert said.startswith(f"HTTP/1.1 {status} ".encode())

    run(main)


def test_head_gives_the_length_alone() -> None:
    async def main() -> None:
        async with server(None) as telling:
            said = await get(telling, "/", method="HEAD")
            assert (said.status, said.body) == (200, b"")
            assert int(said.headers["Content-Length"]) == len((await get(telling, "/")).body)

    run(main)


def test_silent_client_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SECONDS", 0.01)

    async def main() -> None:
        async with server(None) as telling:
            assert await say(telling, b"GET /metr") == b""

    run(main)


def test_who_only_holds_connections_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PACE_SECONDS", 0.0)

    async def main() -> None:
        async with server(None) as telling:
            held = [await connected(telling) for _ in range(http.MOST + 1)]
            assert (await get(telling, "/")).status == 200
            assert await held[0][0].read() == b""  # the oldest made room
            for _, writer in held:
                writer.close()

    run(main)


def test_scrapes_in_a_crowd_look_at_the_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PACE_SECONDS", 0.0)
    monkeypatch.setattr(serving, "FRESH_SECONDS", 600.0)

    async def main() -> None:
        async with scraped() as (mesh, telling):
            driver = mesh.drivers[0]
            looks: list[int] = []
            stats = driver.stats

            def counted() -> dict[str, Any]:
                looks.append(1)
                return stats()

            monkeypatch.setattr(driver, "stats", counted)
            bodies = {said.body for said in await asyncio.gather(*[get(telling, "/metrics") for _ in range(10)])}
            assert (len(bodies), len(looks)) == (1, 1)

    run(main)


def test_the_node_works_on_while_a_page_is_written() -> None:
    async def main() -> None:
        async with scraped() as (mesh, _):
            turns = 0

            async def turning() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            spinning = asyncio.ensure_future(turning())
            page = await serving._write(mesh.drivers[0], serving._TEXT)
            spinning.cancel()
            assert turns > page.count(b"# TYPE") / 2

    run(main)


def test_closing_ends_what_is_open_and_frees_the_port() -> None:
    async def main() -> None:
        async with server(None) as telling:
            reader, writer = await connected(telling)
            await get(telling, "/")  # so it was accepted
        assert await reader.read() == b""
        writer.close()
        async with server(None, telling.address):
            pass

    run(main)


def test_address_that_cannot_be_listened_at_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"found that {port} cannot be listened at \\(Address already in use\\)"):
            http.listen(str(port))
    for wrong in ("", "x", ":9464", "1.2.3.4:", "localhost:70000", "localhost:9 "):
        with pytest.raises(ConfigError, match="expected PORT, or HOST:PORT"):
            http.listen(wrong)
    with pytest.raises(ConfigError, match="cannot be listened at"):
        http.listen("192.0.2.1:0")


@pytest.mark.parametrize(("address", "host"), [("0", "127.0.0.1"), ("127.0.0.2:0", "127.0.0.2"), ("[::1]:0", "::1")])
def test_port_alone_is_loopbacks(address: str, host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with http.listen(address) as listener:
        assert listener.getsockname()[0] == host


def test_missing_extra_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "installed", lambda module: False)
    with pytest.raises(BackendUnavailable, match=r"^--metrics: found no prometheus-client, .* pip install 'zpipe\[metrics\]'$"):
        server(None)


def test_a_pipeline_in_a_program_tells_of_its_source() -> None:
    async def main() -> None:
        topology = override(load_topology("local"), bundle=str(HALF))
        async with zpipe.Pipeline.local(topology) as pipeline, zpipe.MetricsServer(pipeline, "0") as telling:
            await pipeline.submit(image(1))
            page = (await get(telling, "/metrics")).body
            assert b'zpipe_source_ended_samples_total{outcome="result",rank="0",topology="local"} 1.0\n' in page
            assert (await get(telling, "/readyz")).status == 200

    run(main)
