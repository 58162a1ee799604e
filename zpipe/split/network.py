"""A network made ready to be cut: any batch goes, its answer is raw logits, and what it knows of every tensor was observed.

Shapes are not inferred but seen: all tensors are computed at two batch sizes. What comes out twice and three times as long as a
sample belongs to samples; what `Shape` says of such a tensor is then constants and the batch, and the batch every stage can take
from its own input. So shapes, which exporters carry from one end of a graph to the other, cross no cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from zpipe.errors import ConfigError
from zpipe.model import DTYPE_BYTES, TensorSpec
from zpipe.models.graphs import reads
from zpipe.split.answer import Answer, find_answer
from zpipe.split.batch import free_batch
from zpipe.split.costs import node_macs
from zpipe.split.graph import Array, add_constant, attribute, live_tensors, needed
from zpipe.split.pixels import PIXELS, Pixels
from zpipe.split.reading import Original
from zpipe.split.running import RunFailed, random_inputs, session_for

#: The batches at which tensors are looked at: neither is 1, which many other axes are as well.
FIRST, SECOND = 2, 3

#: `[1] int64`, the batch, in graphs that need it; not made by any of their nodes.
BATCH = "zpipe.batch"

#: How far whole numbers go as inputs where nothing says more.
TOKENS = 2

#: Whole numbers up to this many are shapes, axes and the like: their values are kept.
SMALL = 64


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What can be cut.

    Attributes:
        original: as the user has it.
        model: its graph's nodes are all needed, in topological order; batch axis free.
        input, output: tensors where it begins and ends; the latter is `answer.tensor`, raw logits.
        takes: one sample at its input.
        pixels: what was put in front, None where nothing was.
        answer: what becomes of its output.
        high: inputs of whole numbers stay below it.
        live: tensors that depend on the input.
        tensors: those of them that have a row for each sample, in a dtype that may travel; one sample each.
        macs: multiply-adds of each node for one sample.
    """

    original: Original
    model: onnx.ModelProto
    input: str
    output: str
    takes: TensorSpec
    pixels: Pixels | None
    answer: Answer
    high: int
    live: frozenset[str]
    tensors: Mapping[str, TensorSpec]
    macs: tuple[int, ...]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """In topological order."""
        nodes: Sequence[onnx.NodeProto] = self.model.graph.node
        return nodes

    def examples(self, batch: int, *, seed: int) -> Array:
        """Random inputs."""
        return random_inputs(self.takes.dtype, self.takes.shape, batch=batch, high=self.high, seed=seed)

    def expected(self, rows: Array) -> Array:
        """The original's logits for inputs of this network, `[rows, classes] float32`."""
        return self.answer.logits(self.original.answers(rows if self.pixels is None else self.pixels.normalise(rows)))


def make_network(original: Original, *, pixels: Pixels | None = None) -> Network:
    """Makes it ready.

    Args:
        original: as read.
        pixels: normalises images, in front of it.

    Raises:
        ConfigError: its batch cannot be made free, or its answer is no score for each class; one line.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original.model)
    graph = model.graph
    del graph.value_info[:]
    free_batch(original, graph)
    source, takes = original.input, original.takes
    if pixels is not None:
        takes = pixels.put_before(graph, source)
        source = PIXELS
    high = 256 if takes.dtype == "uint8" else _vocabulary(graph, source)
    observed = _observe(original, model, source, takes, high)
    answer = find_answer(original, graph, observed)
    original = original.asked_for(answer.original)
    _free_shapes(graph, source, observed)
    kept, _ = needed(graph.node, [answer.tensor], {source})
    del graph.node[:]
    graph.node.extend(kept)
    live = live_tensors(kept, source)
    if answer.tensor not in live:
        raise ConfigError(f"{original.name}: output {original.output}: found that it ignores the input, expected a network")
    tensors = {name: spec for name in live if name in observed and (spec := observed[name].sample()) is not None}
    answer.describe(tensors)
    shapes = {name: seen.first for name, seen in observed.items()}
    shapes |= {item.name: tuple(item.dims) for item in graph.initializer}
    macs = tuple(node_macs(node, shapes) // FIRST for node in kept)
    return Network(original, model, source, answer.tensor, takes, pixels, answer, high, frozenset(live), tensors, macs)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A tensor at two batch sizes.

    Attributes:
        dtype: its name.
        first, second: its shape at each.
        values: at each, of few whole numbers, or of the answer; else None.
    """

    dtype: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    values: tuple[Array, Array] | None

    def sample(self) -> TensorSpec | None:
        """One sample of it, if it has a row for each in a dtype that may travel."""
        rows = len(self.first) > 1 and (self.first[0], self.second[0]) == (FIRST, SECOND)
        if not rows or self.first[1:] != self.second[1:] or self.dtype not in DTYPE_BYTES or not math.prod(self.first):
            return None
        return TensorSpec(self.dtype, self.first[1:])


def _observe(original: Original, model: onnx.ModelProto, source: str, takes: TensorSpec, high: int) -> dict[str, Seen]:
    """Every tensor that nodes make, and the input."""
    names = [name for node in model.graph.node for name in node.output if name]
    session = session_for(model, names, original.name, optimised=False)
    runs = []
    for batch in (FIRST, SECOND):
        rows = random_inputs(takes.dtype, takes.shape, batch=batch, high=high, seed=batch)
        try:
            values = session.run({source: rows}, names)
        except RunFailed as exc:
            raise _refused(original, exc, batch) from exc
        found = dict(zip(names, values, strict=True))
        runs.append({name: _brief(value, whole=name == original.output) for name, value in found.items()} | {source: _brief(rows)})
    return {
        name: Seen(one[0], one[1], two[1], None if one[2] is None or two[2] is None else (one[2], two[2]))
        for name, one in runs[0].items()
        if one is not None and (two := runs[1][name]) is not None
    }


def _refused(original: Original, exc: RunFailed, batch: int) -> ConfigError:
    if original.batch is None:
        wrong = f"ran with {batch} samples and failed ({exc})"
        remedy = "check that it takes any batch, or export it again with a dynamic batch axis; inputs were random"
    else:
        wrong = f"a batch of {original.batch} is built into it and could not be made free ({exc})"
        remedy = "export it again with a dynamic batch axis (torch.onnx.export(..., dynamic_shapes=({0: Dim('batch')},)))"
    return ConfigError(f"{original.name}: found that {wrong}, expected a network for any batch; {remedy}")


def _brief(value: object, *, whole: bool = False) -> tuple[str, tuple[int, ...], Array | None] | None:
    """Dtype, shape, and values where they are needed; None of what is no tensor."""
    if not isinstance(value, np.ndarray):
        return None
    keep = whole or (value.dtype.kind == "i" and value.size <= SMALL)
    return value.dtype.name, value.shape, value if keep else None


def _vocabulary(graph: onnx.GraphProto, source: str) -> int:
    """What whole numbers at the input must stay below: the rows of the table that they look up."""
    sizes = {item.name: item.dims for item in graph.initializer}
    names = {source}
    rows = []
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in names and node.input[0] in sizes:
            rows.append(sizes[node.input[0]][attribute(node, "axis", 0)])
    return min(rows, default=TOKENS)


# ---- shapes ------------------------------------------------------------------------------------


def _free_shapes(graph: onnx.GraphProto, source: str, observed: Mapping[str, Seen]) -> None:
    """Lets no `Shape` read a sample's tensor: what it says is put together from constants and BATCH."""
    live = live_tensors(graph.node, source)
    nodes = []
    for node in graph.node:
        seen = observed.get(node.output[0]) if node.op_type == "Shape" and node.input[0] in live else None
        nodes += [node] if seen is None else _rebuilt(graph, node, seen)
    del graph.node[:]
    graph.node.extend(nodes)
    batchy = live_tensors(graph.node, BATCH) - live_tensors(graph.node, source)
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in batchy:
            _constant_reshape(graph, node, observed)


def _rebuilt(graph: onnx.GraphProto, node: onnx.NodeProto, seen: Seen) -> list[onnx.NodeProto]:
    """Nodes that give what this Shape gave; itself, where that follows no rule."""
    assert seen.values is not None
    factors = [_factor(int(a), int(b)) for a, b in zip(*seen.values, strict=True)]
    if None in factors:
        return [node]
    name, made, parts = node.output[0], [], []
    for index, (factor, size) in enumerate(zip(factors, seen.values[0].tolist(), strict=True)):
        if factor == 0:
            parts.append(add_constant(graph, f"{name}.size{index}", np.array([size], np.int64)))
        elif factor == 1:
            parts.append(BATCH)
        else:
            by = add_constant(graph, f"{name}.factor{index}", np.array([factor], np.int64))
            made.append(onnx.helper.make_node("Mul", [BATCH, by], [f"{name}.rows{index}"]))
            parts.append(f"{name}.rows{index}")
    return [*made, onnx.helper.make_node("Concat", parts, [name], axis=0)] if parts else [node]


def _factor(first: int, second: int) -> int | None:
    """How many times the batch it is; 0 = it does not depend on it, None = in some other way."""
    if first == second:
        return 0
    return first // FIRST if first % FIRST == 0 and first // FIRST * SECOND == second else None


def _constant_reshape(graph: onnx.GraphProto, node: onnx.NodeProto, observed: Mapping[str, Seen]) -> None:
    """Gives a Reshape a constant target, with -1 where the batch was."""
    seen = observed.get(node.input[1])
    if seen is None or seen.values is None:
        return
    target, other = (np.array(values, np.int64) for values in seen.values)
    differing = np.flatnonzero(target != other)
    if len(differing) != 1 or (target <= 0).any():
        return
    target[differing] = -1
    node.input[1] = add_constant(graph, f"{node.output[0]}.shape", target)


def weight_bytes(network: Network) -> list[frozenset[tuple[str, int]]]:
    """For each node the weights it brings with it: (name, bytes); those of nodes that only prepare weights go to who reads them."""
    sizes = {item.name: item.ByteSize() for item in network.model.graph.initializer}
    behind: dict[str, frozenset[tuple[str, int]]] = {name: frozenset([(name, size)]) for name, size in sizes.items()}
    found = []
    for node in network.nodes:
        brought: frozenset[tuple[str, int]] = frozenset().union(*(behind.get(name, frozenset()) for name in reads(node)))
        if node.op_type == "Constant":
            brought = frozenset([(node.output[0], node.ByteSize())])
        is_live = any(name in network.live for name in node.output)
        if not is_live:
            behind.update(dict.fromkeys(node.output, brought))
        found.append(brought if is_live else frozenset())
    return found
