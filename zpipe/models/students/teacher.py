"""A bundle as a teacher: its stages in ONNX Runtime, which also tell what enters the last linear layer.

What enters there is one number for each of the network's last filters: a channel averaged over the picture in most networks for
images. The layer's own weights are where the students' joining classifier starts.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from zpipe.bundle import Bundle
from zpipe.calibrate.chain import StageChain
from zpipe.errors import ConfigError

Floats = npt.NDArray[np.float32]

#: Rows that the stages run at once.
BATCH = 50

#: What may stand between the linear layer and the answer without changing it.
_SAME = ("Identity", "Flatten", "Reshape", "Squeeze", "Cast")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """The last layer: `logits = weight @ filters + bias`.

    Attributes:
        filters: name of the tensor that enters it, `[batch, filters]`.
        weight: `[classes, filters] float32`.
        bias: `[classes] float32`.
    """

    filters: str
    weight: Floats
    bias: Floats


class Teacher:
    """A bundle's stages, run one after the other; its last exit is what it says.

    Raises:
        ConfigError: its last stage does not end in a linear layer.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.name, self.digest, self.classes = bundle.name, bundle.digest, len(bundle.classes)
        last = onnx.load(bundle.stage_path(len(bundle.stages) - 1))
        self.linear = last_linear(last, bundle.name)
        # Beside the logits, the activation that every stage but the last gives: here, the filters.
        last.graph.node.append(helper.make_node("Identity", [self.linear.filters], ["activation"]))
        last.graph.output.append(helper.make_tensor_value_info("activation", TensorProto.FLOAT, None))
        with tempfile.TemporaryDirectory(prefix="zpipe-teacher-") as folder:
            path = Path(folder) / "last.onnx"
            onnx.save_model(last, path)
            self._chain = StageChain([*(bundle.stage_path(stage.index) for stage in bundle.stages[:-1]), path])
        self._stages = len(bundle.stages)
        #: Numbers in the floating-point weights of all stages.
        self.parameters = sum(_parameters(bundle.stage_path(stage.index)) for stage in bundle.stages)

    @property
    def filters(self) -> int:
        """How many there are."""
        return int(self.linear.weight.shape[1])

    def look(self, images: npt.NDArray[np.generic]) -> tuple[Floats, Floats]:
        """Filters `[samples, filters]` and logits `[samples, classes]`, both float32.

        Raises:
            ExecutorError: ONNX Runtime failed.
        """
        filters = np.empty((len(images), self.filters), np.float32)
        logits = np.empty((len(images), self.classes), np.float32)
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            x, scores = self._chain.run_stage(0, images[rows])
            for stage in range(1, self._stages):
                assert x is not None  # every stage gives one here
                x, scores = self._chain.run_stage(stage, x)
            filters[rows], logits[rows] = x, scores
        return filters, logits


def _parameters(path: Path) -> int:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    weights = (item for item in onnx.load(path).graph.initializer if item.data_type in floats)
    return int(sum(np.prod(item.dims) for item in weights))


def last_linear(model: onnx.ModelProto, name: str) -> Linear:
    """The layer that gives `logits`.

    Raises:
        ConfigError: there is none at the end.
    """
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    node, added = makers.get("logits"), None
    while node is not None and (node.op_type in _SAME or (node.op_type == "Add" and added is None)):
        if node.op_type == "Add":
            constant = next((each for each in node.input if each in weights), None)
            if constant is None:
                break
            added = numpy_helper.to_array(weights[constant]).astype(np.float32)
            node = makers.get(next(each for each in node.input if each != constant))
        else:
            node = makers.get(node.input[0])
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.input[1] not in weights:
        found = "nothing" if node is None else node.op_type
        raise ConfigError(
            f"--teacher {name}: found {found} at its end, expected a linear layer (Gemm or MatMul), whose inputs are shared out "
            "among the students; choose another network"
        )
    weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if not attributes.get("transB", 0):
        weight = weight.T
    weight = weight * np.float32(attributes.get("alpha", 1.0))
    bias = np.zeros(len(weight), np.float32)
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in weights:
        bias = bias + numpy_helper.to_array(weights[node.input[2]]).astype(np.float32) * np.float32(attributes.get("beta", 1.0))
    return Linear(node.input[0], np.ascontiguousarray(weight), bias if added is None else bias + added)
