"""The graph: read once, planned once, then run step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch

from zpipe.errors import BundleError, ExecutorError, one_line
from zpipe.executors.torch_onnx.node import DTYPES, Node, Operator
from zpipe.executors.torch_onnx.operators import GIVES_HOST, ON_HOST, OPERATORS

#: The oldest operator set whose schemas `operators` follows.
OLDEST_OPSET = 11


#: Operators whose second input is indices.
PICKING = ("Gather", "GatherElements")


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator in its place.

    Attributes:
        run: what it does.
        inputs: names, "" where left out.
        outputs: names, "" where nobody wants it.
        moved: places of inputs that are known on the host while the operator runs on the device.
        done: names that nothing after this step wants, so that their memory is free for the next.
    """

    node: Node
    run: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    moved: tuple[int, ...]
    done: tuple[str, ...] = ()


class OnnxModule(torch.nn.Module):
    """An ONNX file as a module: `forward(input) -> {output name: tensor}`.

    What a graph computes of shapes is computed on the host, everything else on the device: a forward pass waits for nothing, and
    a second one of the same batch allocates only its intermediates and copies nothing from the host. So the second may be captured.
    Operators whose inputs are all weights run once, here.

    Args:
        path: the file.
        device: where the weights go and the operators run.
        half: compute in float16 what the file computes in float32.

    Attributes:
        input_name: of the one input.
        output_names: in the file's order.
        picks_by_data: whether an operator takes what indices say that are computed from the input: then a row must hold what a row
            may hold, as torch ends the process's use of the device at an index out of range.

    Raises:
        BundleError: there is no ONNX in the file, or more than one input.
        ExecutorError: it holds an operator, or a form of one, that is not known here.
    """

    def __init__(self, path: Path, *, device: torch.device | str, half: bool = False) -> None:
        super().__init__()
        self.path, self.device, self.half_precision = path, torch.device(device), half
        model = _read(path)
        graph, opset = model.graph, max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
        if opset < OLDEST_OPSET:
            raise ExecutorError(f"{path}: found opset {opset}, expected {OLDEST_OPSET} or later; export the stage again")
        weights = {each.name: _tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
        inputs = [each.name for each in graph.input if each.name not in weights]
        if len(inputs) != 1:
            raise BundleError(f"{path}: found inputs {inputs}, expected one; export the stage again")
        self.input_name = inputs[0]
        self.output_names = tuple(each.name for each in graph.output)
        #: What some operator must know on the host, whatever it is.
        self._bound = {name for node in graph.node for name in _bound(node)}
        #: Known on the host: whole numbers and single values, of which shapes are made, and what is computed from them alone.
        self._constants: dict[str, torch.Tensor] = {}
        self._buffer_of: dict[str, str] = {}
        for name, tensor in weights.items():
            self._keep(name, tensor)
        #: What crossed from the host once, by step, place and content: a graph that is captured finds it on the device.
        self._crossed: dict[tuple[Any, ...], torch.Tensor] = {}
        self._steps = self._plan(graph, opset)

    @torch.inference_mode()
    def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: A002 - the ONNX's own name for it
        """Every output of one batch."""
        if self.half_precision and input.dtype == torch.float32:
            input = input.half()  # noqa: A001
        values: dict[str, torch.Tensor] = {self.input_name: input, **self._constants}
        values.update((name, getattr(self, buffer)) for name, buffer in self._buffer_of.items())
        for index, step in enumerate(self._steps):
            self._run(index, step, values)
            for name in step.done:
                del values[name]
        return {name: values[name] for name in self.output_names}

    def _run(self, index: int, step: _Step, values: dict[str, torch.Tensor]) -> None:
        inputs: list[Any] = [values[name] if name else None for name in step.inputs]
        for place in step.moved:
            inputs[place] = self._across(index, place, inputs[place])
        try:
            result = step.run(step.node, inputs)
        except ExecutorError:
            raise
        except torch.cuda.OutOfMemoryError:  # in torch itself by this name only from 2.5 on
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as exc:
            if _is_device_error(exc):
                raise
            found = one_line(" ".join(str(exc).split()))
            raise step.node.refuse(f"{found} ({type(exc).__name__})", "an operator that runs") from exc
        outputs = result if isinstance(result, tuple) else (result,)
        missing = [name for name in step.outputs[len(outputs) :] if name]
        if missing:
            raise step.node.refuse(f"output {missing[0]!r} wanted", f"the first {len(outputs)} alone to be")
        values.update((name, output) for name, output in zip(step.outputs, outputs, strict=False) if name)

    def _across(self, step: int, place: int, host: torch.Tensor) -> torch.Tensor:
        key = (step, place, host.dtype, tuple(host.shape), tuple(host.reshape(-1).tolist()))
        if key not in self._crossed:
            self._crossed[key] = self._on_device(host)
        return self._crossed[key]

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float16 if self.half_precision and tensor.dtype == torch.float32 else tensor.dtype
        return tensor.to(self.device, dtype)

    # ---- planning ------------------------------------------------------------------------------

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        """A weight, or a constant of the host."""
        if name in self._bound or tensor.dim() == 0 or (tensor.dim() == 1 and not tensor.is_floating_point()):
            self._constants[name] = tensor.cpu()
            return
        self._buffer_of[name] = f"weight_{len(self._buffer_of)}"
        self.register_buffer(self._buffer_of[name], self._on_device(tensor), persistent=False)

    def _plan(self, graph: Any, opset: int) -> tuple[_Step, ...]:
        steps: list[_Step] = []
        on_host = set(self._constants)
        for proto in graph.node:
            step = self._step(proto, opset, on_host)
            if step is None:
                continue  # a Constant
            if all(not name or name in self._constants or name in self._buffer_of for name in step.inputs):
                self._fold(step)
                on_host |= set(step.outputs) & set(self._constants)
                continue
            # On the host are: shapes, and what follows from values of the host alone.
            if proto.op_type in GIVES_HOST or all(not name or name in on_host for name in step.inputs):
                on_host |= set(step.outputs)
            steps.append(step)
        known = on_host.union(self._buffer_of)
        self.picks_by_data = any(step.node.kind in PICKING and step.inputs[1] not in known for step in steps)
        return _with_last_uses(steps, self.output_names)

    def _step(self, proto: Any, opset: int, on_host: set[str]) -> _Step | None:
        attributes = {each.name: _attribute(each) for each in proto.attribute}
        name = proto.name or (proto.output[0] if proto.output else "")
        inputs = tuple(proto.input)
        alone = all(not each or each in on_host for each in inputs)
        node = Node(proto.op_type, name, attributes, opset, sum(map(bool, proto.output)), self.half_precision and not alone)
        if proto.domain not in ("", "ai.onnx") or (proto.op_type not in OPERATORS and proto.op_type != "Constant"):
            kind = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
            raise ExecutorError(
                f"{self.path}: found operator {kind} ({name!r}), expected one of the {len(OPERATORS)} that executor torch-cuda "
                f"knows; take executor onnx or trt"
            )
        if proto.op_type == "Constant":
            self._keep(proto.output[0], _constant(node))
            on_host |= {proto.output[0]} & set(self._constants)
            return None
        for each in _bound(proto):
            if each not in on_host:
                raise node.refuse(f"input {each!r} that depends on the data", "one that follows from shapes alone")
        bound = ON_HOST.get(proto.op_type, ())
        elsewhere = () if alone else tuple(at for at, each in enumerate(inputs) if each in on_host and at not in bound)
        return _Step(node, OPERATORS[proto.op_type], inputs, tuple(proto.output), elsewhere)

    @torch.inference_mode()
    def _fold(self, step: _Step) -> None:
        known = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()} | self._constants
        self._run(-1, step, known)
        for name in filter(None, step.outputs):
            # A view of a weight is kept whole, so that its strides are those of a tensor that was loaded.
            self._keep(name, known[name].contiguous())


def _bound(proto: Any) -> list[str]:
    """The inputs a node must know on the host."""
    return [proto.input[place] for place in ON_HOST.get(proto.op_type, ()) if place < len(proto.input) and proto.input[place]]


def _with_last_uses(steps: Sequence[_Step], outputs: Sequence[str]) -> tuple[_Step, ...]:
    """The same steps, each saying which names nothing after it wants."""
    wanted, planned = set(outputs), []
    for step in reversed(steps):
        # What nobody wants is named "" instead.
        names = tuple(name if name in wanted else "" for name in step.outputs)
        done = {name for name in step.inputs if name and name not in wanted}
        planned.append(replace(step, outputs=names, done=tuple(sorted(done))))
        wanted |= set(step.inputs)
    return tuple(reversed(planned))


def _read(path: Path) -> Any:
    try:
        model = onnx.load(path)
    except FileNotFoundError as exc:
        raise BundleError(f"{path}: found no such file, expected the ONNX of a stage; restore the bundle's files") from exc
    except Exception as exc:  # protobuf's and onnx's errors have no base class in common
        found = one_line(" ".join(str(exc).split()))
        raise BundleError(f"{path}: found no ONNX that loads ({found}), expected a stage; restore it") from exc
    if not model.graph.output:  # protobuf finds no fault with an empty file
        raise BundleError(f"{path}: found no ONNX that loads (no outputs), expected a stage; restore it")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _attribute(proto: Any) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _tensor(onnx.numpy_helper.to_array(value))
    return list(value) if proto.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _constant(node: Node) -> torch.Tensor:
    """What a Constant holds, in whichever of its forms."""
    for kind, dtype in (("value", None), ("value_float", 1), ("value_floats", 1), ("value_int", 7), ("value_ints", 7)):
        if kind in node.attributes:
            value = node.attributes[kind]
            return value if dtype is None else torch.tensor(value, dtype=DTYPES[dtype])
    raise node.refuse(f"a constant with {', '.join(node.attributes) or 'nothing'}", "numbers")


def _is_device_error(exc: BaseException) -> bool:
    """Whether CUDA said it rather than torch: what comes after it may be lost with the device."""
    return isinstance(exc, RuntimeError) and any(name in str(exc) for name in ("CUDA error", "cuDNN error"))
