"""An ONNX file that was made elsewhere: read, checked, its one input and its answer found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError

from zpipe.errors import ConfigError, said
from zpipe.model import DTYPE_BYTES, TensorSpec
from zpipe.split.graph import Array
from zpipe.split.running import Session, session_for

#: What protobuf can write as one file, less some room for what is added.
MOST_BYTES = 2_000_000_000

#: Below it Reshape, Slice, Split and their like are called otherwise than we write them; 18 is what files are converted to.
LEAST_OPSET, TARGET_OPSET = 13, 18

#: The oldest form of file whose weights need not be listed as inputs.
LEAST_IR = 4


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """The user's network as it is, but for its opset; every split is compared with it.

    Attributes:
        name: for messages: what the user called it.
        path: of the file.
        model: without external data, functions, and initializers among the inputs.
        input: name of its one input.
        takes: one sample as it takes it; batch axis left out.
        batch: rows that it takes at a time, None where any number goes.
        output: name of its answer.
        session: of `model`.
    """

    name: str
    path: Path
    model: onnx.ModelProto
    input: str
    takes: TensorSpec
    batch: int | None
    output: str
    session: Session

    def answers(self, rows: Array) -> Array:
        """What it says to some samples `[rows, ...]`; in parts where its batch is fixed."""
        if self.batch is None:
            found: Array = self.session.run({self.input: rows}, [self.output])[0]
            return found
        parts = []
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            full = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            parts.append(self.session.run({self.input: full}, [self.output])[0][: len(part)])
        return np.concatenate(parts)

    def asked_for(self, tensor: str) -> Original:
        """The same with another of its tensors as output."""
        if tensor == self.output:
            return self
        return replace(self, output=tensor, session=session_for(self.model, [tensor], self.name, optimised=True))


def read_original(
    path: Path, *, name: str | None = None, output: str | None = None, shape: Sequence[int] | None = None
) -> Original:
    """Reads a network from an ONNX file.

    Args:
        path: the file; external data lies beside it.
        name: for messages, if not the path.
        output: which output is the answer; None = the only one.
        shape: of one sample, for axes that the file leaves open.

    Raises:
        ConfigError: it cannot be read, or is no network that can be cut; one line.
    """
    name = name or str(path)
    model = _load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    weights = {item.name for item in graph.initializer}
    entering = [item for item in graph.input if item.name not in weights]
    del graph.input[:]
    graph.input.extend(entering)
    model.ir_version = max(model.ir_version, LEAST_IR)
    model = _modern(name, model)
    graph = model.graph
    source, takes, batch = _input(name, graph, shape)
    answer = _output(name, graph, output)
    return Original(name, path, model, source, takes, batch, answer, Session(model, name))


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ConfigError(f"{path}: found no such file, expected an ONNX file; correct the path")
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise DecodeError("no nodes")
    except (DecodeError, ValueError) as exc:
        raise ConfigError(
            f"{path}: found no ONNX network ({said(exc)}), expected a file that an exporter wrote; a torch model is named "
            "package.module:factory"
        ) from exc
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as exc:
        names = sorted({entry.value for item in model.graph.initializer for entry in item.external_data if entry.key == "location"})
        missing = ", ".join(names) or "a file"
        raise ConfigError(
            f"{path}: found no readable external data {missing} beside it, expected the weights there; copy the file as well"
        ) from exc
    size = model.ByteSize()
    if not 0 < size <= MOST_BYTES:
        raise ConfigError(
            f"{path}: found more than {MOST_BYTES / 1e9:g} GB of weights, expected less, as an ONNX file holds no more; store them "
            "as float16 or int8"
        )
    return model


def _modern(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """At least LEAST_OPSET, by the converter that comes with onnx."""
    version = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), TARGET_OPSET)
    if version >= LEAST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, TARGET_OPSET)
    # Its errors are RuntimeErrors of C++ and assertions of Python.
    except Exception as exc:
        raise ConfigError(
            f"{name}: found opset {version}, which cannot be converted ({said(exc, 120)}), expected {LEAST_OPSET} or more; "
            f"export it again with opset {TARGET_OPSET}"
        ) from exc


def _input(name: str, graph: onnx.GraphProto, shape: Sequence[int] | None) -> tuple[str, TensorSpec, int | None]:
    """The one input: its name, one sample of it, and the batch if that is fixed."""
    if len(graph.input) != 1:
        names = ", ".join(item.name for item in graph.input) or "none"
        raise ConfigError(
            f"{name}: inputs: found {len(graph.input)} ({names}), expected one, as a sample is one tensor; export it with the "
            "others as constants"
        )
    item = graph.input[0]
    tensor = item.type.tensor_type
    if not item.type.HasField("tensor_type") or not tensor.HasField("shape") or not len(tensor.shape.dim):
        raise ConfigError(f"{name}: input {item.name}: found no tensor with axes, expected [batch, ...]; export it again")
    dtype = _dtype(tensor.elem_type)
    if dtype not in DTYPE_BYTES:
        raise ConfigError(
            f"{name}: input {item.name}: found {dtype}, expected one of {', '.join(DTYPE_BYTES)}; export it with such"
        )
    first, *rest = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    axes = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim[1:]]
    if shape is None:
        shape = [size or 0 for size in rest]
        if not all(shape):
            raise ConfigError(
                f"{name}: input {item.name}: found open axes, [batch, {', '.join(map(str, axes))}], expected to know one sample's "
                "shape; say it: --example-shape 3,224,224"
            )
    if len(shape) != len(rest) or any(size not in (None, given) for size, given in zip(rest, shape, strict=True)):
        raise ConfigError(
            f"{name}: input {item.name}: found [batch, {', '.join(map(str, axes))}], expected what --example-shape says, "
            f"{','.join(map(str, shape))}, without the batch; correct it or leave it out"
        )
    return item.name, TensorSpec(dtype, tuple(shape)), first


def _dtype(kind: int) -> str:
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name)
    except KeyError:  # 0, or one that is newer than this onnx
        return "no type that is known"


def _output(name: str, graph: onnx.GraphProto, wanted: str | None) -> str:
    """The output that holds the answer."""
    names: list[str] = [item.name for item in graph.output]
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"--output: found {wanted!r}, expected one of {', '.join(names)}; choose one of these")
        return wanted
    if len(names) != 1:
        raise ConfigError(
            f"{name}: outputs: found {len(names)} ({', '.join(names) or 'none'}), expected one with a score for each class; choose "
            "it with --output"
        )
    return names[0]
