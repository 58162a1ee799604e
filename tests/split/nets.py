"""Small ONNX networks as other tools write them: by hand, with random weights, from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 6


class Maker:
    """Collects nodes and weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, *shape: int) -> str:
        values = self.rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def constant(self, name: str, *values: int) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def conv(self, x: str, output: str, before: int, after: int, *, stride: int = 1) -> str:
        weight = self.weight(f"{output}.w", after, before, 3, 3)
        return self.node("Conv", [x, weight], output, pads=[1, 1, 1, 1], strides=[stride, stride])

    def save(
        self,
        path: Path,
        *,
        shape: list[Any],
        output: str,
        dtype: int = TensorProto.FLOAT,
        answers: int = TensorProto.FLOAT,
        opset: int = 17,
    ) -> Path:
        """Writes it; `shape` and `dtype` are the input's, `answers` is the output's."""
        graph = helper.make_graph(
            self.nodes,
            "made elsewhere",
            [helper.make_tensor_value_info("image", dtype, shape)],
            [helper.make_tensor_value_info(output, answers, None)],
            initializer=self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
        return path


def residual(path: Path, *, batch: Any = "N", ending: str = "", reshape: str = "shape", size: int = 8, opset: int = 17) -> Path:
    """Three residual blocks over `[batch, 3, size, size]`, scores of CLASSES.

    Args:
        path: written.
        batch: of the input: a name, or a number that is then built in.
        ending: `Softmax`, or nothing.
        reshape: how it flattens before the classifier: by `shape` (what an exporter writes for a free batch), or a `constant`.
        size: side of an image.
        opset: of the file.
    """
    maker = Maker()
    x = maker.node("Relu", [maker.conv("image", "stem", 3, 8)], "r0")
    for block in range(3):
        inner = maker.node("Relu", [maker.conv(x, f"a{block}", 8, 8)], f"i{block}")
        both = maker.node("Add", [maker.conv(inner, f"b{block}", 8, 8), x], f"s{block}")
        x = maker.node("Relu", [both], f"r{block + 1}")
    pooled = maker.node("GlobalAveragePool", [x], "pooled")
    if reshape == "shape":
        # The first block's shape, read at the far end: what would cross every cut.
        shape = maker.node("Shape", ["r0"], "far")
        rows = maker.node("Gather", [shape, maker.constant("zero", 0)], "rows", axis=0)
        target = maker.node("Concat", [rows, maker.constant("eight", 8)], "target", axis=0)
    else:
        target = maker.constant("target", batch, 8)
    flat = maker.node("Reshape", [pooled, target], "flat")
    output = maker.node("Gemm", [flat, maker.weight("fc.w", CLASSES, 8), maker.weight("fc.b", CLASSES)], "scores", transB=1)
    if ending:
        output = maker.node(ending, [output], "answer", axis=1)
    return maker.save(path, shape=[batch, 3, size, size], output=output, opset=opset)


def tokens(path: Path, *, vocabulary: int = 300, length: Any = 5) -> Path:
    """Whole numbers in, two layers over their embeddings, scores of CLASSES."""
    maker = Maker()
    x = maker.node("Gather", [maker.weight("table", vocabulary, 16), "image"], "embedded")
    for layer in range(2):
        x = maker.node("MatMul", [x, maker.weight(f"m{layer}", 16, 16)], f"h{layer}")
        x = maker.node("Tanh", [x], f"t{layer}")
    pooled = maker.node("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    output = maker.node("MatMul", [pooled, maker.weight("out", 16, CLASSES)], "scores")
    return maker.save(path, shape=["N", length], output=output, dtype=TensorProto.INT64)


def branching(path: Path) -> Path:
    """A branch in the middle (If) whose bodies read a tensor from before the cut and a weight."""
    maker = Maker()
    early = maker.node("MatMul", ["image", maker.weight("w0", 8, 8)], "early")
    maker.node("MatMul", [maker.node("Tanh", [early], "bent"), maker.weight("w1", 8, 8)], "late")
    bodies = {}
    for name, other in (("then_branch", "early"), ("else_branch", maker.weight("w2", 8))):
        out = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph([helper.make_node("Add", ["late", other], [f"{name}.out"])], name, [], [out])
    maker.weights.append(numpy_helper.from_array(np.array(True), "yes"))
    chosen = maker.node("If", ["yes"], "chosen", **bodies)
    output = maker.node("MatMul", [maker.node("Tanh", [chosen], "again"), maker.weight("w3", 8, CLASSES)], "scores")
    return maker.save(path, shape=["N", 8], output=output)


def looping(path: Path) -> Path:
    """A Loop in the middle whose body calls its own tensors what stages call theirs, and captures a weight."""
    maker = Maker()
    x = maker.node("Relu", [maker.node("MatMul", ["image", maker.weight("w0", 8, 8)], "h0")], "r0")
    numbers = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
    ]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", maker.weight("w1", 8, 8)], ["logits"]),
            helper.make_node("Add", ["logits", "bias"], ["biased"]),
            helper.make_node("Tanh", ["biased"], ["activation"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [*numbers, helper.make_tensor_value_info("input", TensorProto.FLOAT, None)],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("activation", TensorProto.FLOAT, None),
        ],
        initializer=[numpy_helper.from_array(np.full(8, 0.5, np.float32), "bias")],
    )
    maker.weights.append(numpy_helper.from_array(np.array(True), "yes"))
    maker.weights.append(numpy_helper.from_array(np.array(3, np.int64), "three"))
    looped = maker.node("Loop", ["three", "yes", x], "looped", body=body)
    output = maker.node("MatMul", [maker.node("Tanh", [looped], "bent"), maker.weight("w2", 8, CLASSES)], "scores")
    return maker.save(path, shape=["N", 8], output=output)


def skipping(path: Path) -> Path:
    """Every layer reads the input again, as in a network of dense connections."""
    maker = Maker()
    x = "image"
    for layer in range(3):
        inner = maker.node("Tanh", [maker.node("MatMul", [x, maker.weight(f"w{layer}", 8, 8)], f"h{layer}")], f"t{layer}")
        x = maker.node("Add", [inner, "image"], f"s{layer}")
    both = maker.node("Concat", [x, "image"], "both", axis=1)
    output = maker.node("MatMul", [both, maker.weight("out", 16, CLASSES)], "scores")
    return maker.save(path, shape=["N", 8], output=output)


def layers(path: Path, *, endings: tuple[str, ...] = (), half: bool = False) -> Path:
    """Two layers over 8 numbers and scores of CLASSES, then these operators.

    Args:
        path: written.
        endings: operators without attributes, one behind the other; large scores go in, so that some probabilities are tiny.
        half: half floats, all through.
    """
    maker = Maker()
    x = "image"
    for layer in range(2):
        x = maker.node("Tanh", [maker.node("MatMul", [x, maker.weight(f"w{layer}", 8, 8)], f"h{layer}")], f"t{layer}")
    x = maker.node("MatMul", [x, maker.weight("out", 8, CLASSES)], "scores")
    if endings:
        maker.weights.append(numpy_helper.from_array(np.float32(20), "large"))
        x = maker.node("Mul", [x, "large"], "scaled")
    for index, ending in enumerate(endings):
        x = maker.node(ending, [x], f"end{index}")
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    if half:
        maker.weights = [
            numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name) for item in maker.weights
        ]
    return maker.save(path, shape=["N", 8], output=x, dtype=kind, answers=kind)


def architecture(name: str, path: Path, *, seed: int = 0) -> Path:
    """A well-known network with random weights, in a file that comes with the onnx package for its own tests.

    Caffe2 and PyTorch exported these in 2018: opset 9, batch 1 built in, weights listed among the inputs. There are resnet50,
    squeezenet, shufflenet, densenet121, inception_v1, inception_v2, bvlc_alexnet, zfnet512 and vgg19, all for 224 pixels. Each file
    has every weight as a constant made by a node; here each becomes random values of fitting size, for the same answer to every
    input would hide what a split breaks.
    """
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    model = onnx.load(source)
    graph, rng = model.graph, np.random.default_rng(seed)
    shapes = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    scales = {node.input[1] for node in graph.node if node.op_type == "BatchNormalization"}
    for node in made:
        size = tuple(int(side) for side in shapes[node.input[0]])
        values = rng.standard_normal(size) * np.sqrt(2.0 / max(1.0, float(np.prod(size[1:]))))
        if len(size) == 1:
            values = 1 + 0.1 * rng.random(size) if node.output[0] in variances | scales else 0.1 * rng.standard_normal(size)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    onnx.save(model, path)
    return path
