"""As much of an HTTP server as a scraper needs, on the node's own loop, and so little that a hostile one cannot hurt the node.

1. A connection is one GET or HEAD and its answer. It has SECONDS for both, and is ended then, whatever it was doing.
2. Connections are accepted one by one, PACE_SECONDS apart; the others wait in the kernel, BACKLOG of them, and cost nothing here.
3. Of MOST open ones the oldest makes room for a new one: who only holds connections keeps nobody out.
4. A request is HEAD_BYTES at most. Of it nothing is kept but its path and what it accepts; a body is never read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from zpipe.errors import ConfigError

log = logging.getLogger("zpipe.metrics")

SECONDS = 5.0
PACE_SECONDS = 0.02
BACKLOG = 16
MOST = 16
HEAD_BYTES = 8192
#: Accepting failed, most likely for want of descriptors: a while later there may be some.
RETRY_SECONDS = 1.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """To one request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """What is kept of one; `accept` is the header's value in small letters, "" without one."""

    path: str
    accept: str


#: Whatever it raises is answered by 500.
Answering = Callable[[Request], Awaitable[Answer]]


def listen(address: str) -> socket.socket:
    """A socket that listens at `HOST:PORT`, `[V6]:PORT`, or `PORT` of loopback; port 0 takes one that is free.

    Raises:
        ConfigError: the address cannot be understood, or not be listened at.
    """
    host, colon, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF and (host or not colon)):
        raise ConfigError(
            f"--metrics: found {address!r}, expected PORT, or HOST:PORT with a host of this machine, such as 127.0.0.1:9464"
        )
    try:
        found = socket.getaddrinfo(host.strip("[]") or _LOOPBACK, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits for the last one's scrapes
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as exc:  # what getaddrinfo raises, too
        said = exc.strerror or str(exc)
        raise ConfigError(
            f"--metrics: found that {address} cannot be listened at ({said}), expected a free port of this machine; choose another"
        ) from exc
    listener.setblocking(False)
    return listener


class Server:
    """Answers on a listening socket, until it is closed.

    Args:
        listener: not blocking; closed with this.
        answer: gives the answer to a request.
    """

    def __init__(self, listener: socket.socket, answer: Answering) -> None:
        self._listener = listener
        self._answer = answer
        self._accepting: asyncio.Task[None] | None = None
        self._open: dict[asyncio.Task[None], None] = {}  #: the one that came first in front

    def start(self) -> None:
        """On the loop that runs."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def aclose(self) -> None:
        """Ends every connection."""
        tasks = [*self._open, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as exc:
                log.debug("a scraper's connection could not be accepted: %s", exc)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if len(self._open) >= MOST:
                next(iter(self._open)).cancel()
            task = loop.create_task(self._serve(connection))
            self._open[task] = None
            task.add_done_callback(partial(self._ended, connection))
            await asyncio.sleep(PACE_SECONDS)

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # here, since a task that is cancelled before its first turn runs no line of its own
        del self._open[task]

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await asyncio.wait_for(self._exchange(connection), SECONDS)
        except (asyncio.TimeoutError, OSError) as exc:
            log.debug("a scraper's connection was ended: %s", type(exc).__name__)

    async def _exchange(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        head = b""
        while b"\r\n\r\n" not in head:
            if len(head) > HEAD_BYTES:
                break
            came = await loop.sock_recv(connection, HEAD_BYTES)
            if not came:
                return
            head += came
        request, refusal = parse(head)
        answer = refusal or await self._answered(request)
        body = b"" if head.startswith(b"HEAD ") else answer.body
        await loop.sock_sendall(connection, _head(answer) + body)
        connection.shutdown(socket.SHUT_WR)

    async def _answered(self, request: Request) -> Answer:
        try:
            return await self._answer(request)
        except Exception as exc:
            log.exception("%s could not be answered", request.path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(exc).__name__}: {exc}\n".encode())


def parse(head: bytes) -> tuple[Request, Answer | None]:
    """A request's path without its query, and what it accepts; and the answer where that is a refusal."""
    nothing = Request("", "")
    text, ended, _ = head.partition(b"\r\n\r\n")
    if not ended or len(text) > HEAD_BYTES:
        return nothing, _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    line, *fields = text.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        return nothing, _refusal(HTTPStatus.BAD_REQUEST)
    if words[0] not in ("GET", "HEAD"):
        return nothing, _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
    accepts = [value.strip().lower() for name, _, value in (field.partition(":") for field in fields) if name.lower() == "accept"]
    return Request(words[1].partition("?")[0], ", ".join(accepts)), None


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}\n".encode())


def _head(answer: Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
