"""The tensors an engine must have for a stage."""

from __future__ import annotations

from collections.abc import Iterable

from zpipe.errors import BundleError
from zpipe.executors.tensorrt.flavour import Tensor
from zpipe.model import StageSpec, TensorSpec


def outputs_of(spec: StageSpec) -> dict[str, TensorSpec]:
    """By name, in the order of an ONNX export."""
    outputs = {} if spec.output is None else {"activation": spec.output}
    return outputs if spec.exit_head is None else {**outputs, "logits": TensorSpec("float32", (spec.exit_head.classes,))}


def check_tensors(file: str, spec: StageSpec, tensors: Iterable[Tensor]) -> None:
    """Compare what a library read with the manifest: a run would otherwise write past a buffer.

    Raises:
        BundleError: names file, tensor, found and expected.
    """
    found = {tensor.name: tensor for tensor in tensors}
    for name, expected in {"input": spec.input, **outputs_of(spec)}.items():
        tensor = found.pop(name, None)
        dtypes = {expected.dtype, "float16"} if name == "logits" else {expected.dtype}  # the gate takes both
        if tensor is None or tensor.dtype not in dtypes or tensor.shape != (-1, *expected.shape):
            have = "none of that name" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            wanted = f"{expected.dtype} {[-1, *expected.shape]} as in the manifest"
            raise BundleError(f"{file}: {name}: found {have}, expected {wanted}; export the stage again")
    if found:
        raise BundleError(f"{file}: found further tensors {', '.join(found)}, expected none; export the stage again")
