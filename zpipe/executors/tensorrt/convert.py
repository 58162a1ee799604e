"""A stage's ONNX in another precision, float32 still at its boundaries as the bundle states them.

- `fp16`: ONNX Runtime's converter, which knows the operators that must stay float32.
- `bf16`: the same graph with every float16 made bfloat16, from the float32 weights. ONNX Runtime has no bfloat16 kernels for a CPU,
  so what is checked is the float32 graph with every weight and every result rounded to bfloat16.
- `int8`: QuantizeLinear and DequantizeLinear around the inputs and weights of convolutions and matrix products, symmetric,
  weights per channel, ranges from a calibration pass (min and max). All else, and every sum, stays float32. Weights stay float32
  in the file, with a pair of their own: TensorRT 8.6 takes no int8 constants. By NVIDIA's support matrix `tensorrt_rtx` has int8
  for weights alone: 1.6.1 refuses these graphs, 1.7.1 builds them, and what they gain there only a GPU can say.

Needs the package `onnx`, which the extras `trt` and `rtx` bring; fp32 is the bundle's own file and needs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from zpipe.errors import BackendUnavailable, BundleError, one_line

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
#: Of what this file does; another number, and engines built before are built anew.
CONVERSION = 1

#: What int8 kernels exist for. Outputs are left to whoever reads them next, which is where TensorRT wants the pairs.
_QUANTIZED = ["Conv", "Gemm", "MatMul"]
#: Rows per run of the calibration.
_CALIBRATION_BATCH = 32


class Converted(NamedTuple):
    """A stage in a precision.

    Attributes:
        engine: the ONNX that an engine is built from.
        check: the ONNX whose answers in ONNX Runtime stand for the engine's; mostly the same.
    """

    engine: bytes
    check: bytes


def convert(path: Path, precision: str, calibration: npt.NDArray[Any]) -> Converted:
    """A stage's ONNX in one of `PRECISIONS`.

    Args:
        path: the bundle's file.
        precision: which.
        calibration: `[rows, ...]` inputs of this stage; read for int8 alone.

    Raises:
        BackendUnavailable: `onnx` is not installed.
        BundleError: the file cannot be converted.
    """
    if precision == "fp32":
        graph = path.read_bytes()
        return Converted(graph, graph)
    onnx = _import_onnx()
    try:
        model = _without_constant_nodes(onnx, onnx.load(str(path)))
        if precision == "int8":
            graph = _quantized(model, calibration)
            return Converted(graph, graph)
        half = _halved(onnx, model)
        if precision == "fp16":
            return Converted(half.SerializeToString(), half.SerializeToString())
        return Converted(_as_bfloat16(onnx, half, model), _rounded(onnx, model))
    except Exception as exc:  # of two foreign libraries
        found = one_line(" ".join(f"{type(exc).__name__}: {exc}".split()))
        raise BundleError(f"{path}: found an ONNX that cannot be made {precision} ({found}); take --precision fp32") from exc


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise BackendUnavailable(
            "zpipe build: found no onnx, expected it for any precision but fp32; run: pip install 'zpipe[rtx]', or pip install onnx"
        ) from exc
    return onnx


def _without_constant_nodes(onnx: Any, model: Any) -> Any:
    """Constants as initializers, so that there is one kind of weight to convert."""
    nodes = []
    for node in model.graph.node:
        value = next((each for each in node.attribute if each.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    _set_nodes(model, nodes)
    return model


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # clearing the list empties what it held
    del model.graph.node[:]
    model.graph.node.extend(copies)


# ---- float16 and bfloat16 ----------------------------------------------------------------------


def _halved(onnx: Any, model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = convert_float_to_float16(copy, keep_io_types=True)
    # It appends the casts of the inputs behind their readers, which ONNX forbids and not every reader forgives.
    inputs = {each.name for each in half.graph.input}
    first = [node for node in half.graph.node if node.op_type == "Cast" and set(node.input) <= inputs]
    _set_nodes(half, first + [node for node in half.graph.node if node not in first])
    return half


def _as_bfloat16(onnx: Any, half: Any, model: Any) -> bytes:
    import ml_dtypes  # comes with onnx

    float16, bfloat16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for tensor in half.graph.initializer:
        if tensor.data_type == float16:
            raw = weights[tensor.name].astype(ml_dtypes.bfloat16).tobytes()
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, bfloat16, tensor.dims, raw, raw=True))
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == float16:
            value.type.tensor_type.elem_type = bfloat16
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == float16:
                attribute.i = bfloat16
    serialized: bytes = half.SerializeToString()
    return serialized


def _rounded(onnx: Any, model: Any) -> bytes:
    """The float32 graph with weights and results rounded to bfloat16: what bfloat16 kernels give that sum in float32."""
    import ml_dtypes
    import numpy as np

    helper, float32, bfloat16 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    model = onnx.shape_inference.infer_shapes(model)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == float32}
    for tensor in model.graph.initializer:
        if tensor.data_type == float32:
            rounded = onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))

    def rounding(source: str, target: str) -> list[Any]:
        through = f"{target}/bfloat16"
        return [
            helper.make_node("Cast", [source], [through], to=bfloat16),
            helper.make_node("Cast", [through], [target], to=float32),
        ]

    nodes: list[Any] = []
    renamed = {value.name: f"{value.name}/rounded" for value in model.graph.input if value.name in floats}
    for name, target in renamed.items():
        nodes += rounding(name, target)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        outputs = [name for name in node.output if name in floats]
        node.output[:] = [f"{name}/exact" if name in floats else name for name in node.output]
        nodes += [node, *(cast for name in outputs for cast in rounding(f"{name}/exact", name))]
    _set_nodes(model, nodes)
    del model.graph.value_info[:]
    serialized: bytes = model.SerializeToString()
    return serialized


# ---- int8 --------------------------------------------------------------------------------------


def _quantized(model: Any, calibration: npt.NDArray[Any]) -> bytes:
    from onnxruntime import quantization

    class Rows(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[npt.NDArray[Any]] = (
                calibration[i : i + _CALIBRATION_BATCH] for i in range(0, len(calibration), _CALIBRATION_BATCH)
            )

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"input": batch}

    # Says that it went through the library's own preprocessing, which is otherwise asked for on the root logger.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantized.onnx"
        quantization.quantize_static(
            model,
            str(file),
            Rows(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
                "OpTypesToExcludeOutputQuantization": _QUANTIZED,
            },
        )
        return file.read_bytes()
