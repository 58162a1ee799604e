"""Convolution, pooling, products and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from zpipe.executors.torch_onnx.node import Node, Operator, ints, optional

# ---- convolution and pooling -------------------------------------------------------------------


def _pads(node: Node, shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """`[begin..., end...]`, one of each per spatial axis."""
    rank = len(shape)
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return list(node.get("pads", [0] * (2 * rank)))
    if mode == "VALID":
        return [0] * (2 * rank)
    begin, end = [], []
    for size, width, stride, dilation in zip(shape, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begin.append(less if mode == "SAME_UPPER" else more)
        end.append(more if mode == "SAME_UPPER" else less)
    return begin + end


def _padded(x: torch.Tensor, pads: Sequence[int], value: float) -> tuple[torch.Tensor, list[int]]:
    """The tensor, and the padding that is left to the operator: all of it where both sides are alike, else none."""
    rank = len(pads) // 2
    begin, end = list(pads[:rank]), list(pads[rank:])
    if begin == end:
        return x, begin
    sides = [side for axis in reversed(range(rank)) for side in (begin[axis], end[axis])]
    return functional.pad(x, sides, value=value), [0] * rank


def convolve(x: Any, weight: Any, bias: Any, *, strides: Any, pads: Any, dilations: Any, groups: int, out: Any = None) -> Any:
    """A convolution in full float32: TF32 is off for this call alone, whatever the process has set.

    Args:
        out: the output padding of a transposed convolution; None for a plain one.
    """
    # The flags stand in this operator's signature: benchmark, deterministic, cuDNN, TF32. `conv2d` takes them from the process,
    # where changing them would change other threads' convolutions, too. On the choice of kernel both agree.
    transposed = out is not None
    cudnn = torch.backends.cudnn.enabled
    extra = out if transposed else [0] * len(strides)
    return torch._convolution(x, weight, bias, strides, pads, dilations, transposed, extra, groups, False, False, cudnn, False)


def _conv(node: Node, inputs: list[Any]) -> Any:
    x, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    kernel = list(weight.shape[2:])
    strides, dilations = list(node.get("strides", [1] * len(kernel))), list(node.get("dilations", [1] * len(kernel)))
    x, pads = _padded(x, _pads(node, x.shape[2:], kernel, strides, dilations), 0.0)
    return convolve(x, weight, bias, strides=strides, pads=pads, dilations=dilations, groups=node.get("group", 1))


def _conv_transpose(node: Node, inputs: list[Any]) -> Any:
    x, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    rank = weight.dim() - 2
    pads = list(node.get("pads", [0] * (2 * rank)))
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "") or "output_shape" in node.attributes or pads[:rank] != pads[rank:]:
        raise node.refuse("auto_pad, output_shape or unequal pads", "pads alike on both sides")
    ones = [1] * rank
    sizes = {"strides": list(node.get("strides", ones)), "pads": pads[:rank], "dilations": list(node.get("dilations", ones))}
    return convolve(x, weight, bias, **sizes, groups=node.get("group", 1), out=list(node.get("output_padding", [0] * rank)))


def _pooling(node: Node, x: torch.Tensor) -> tuple[list[int], list[int], list[int]]:
    """(kernel, strides, dilations)."""
    kernel = list(node.attributes["kernel_shape"])
    ones = [1] * len(kernel)
    return kernel, list(node.get("strides", ones)), list(node.get("dilations", ones))


def _max_pool(node: Node, inputs: list[Any]) -> Any:
    if node.outputs > 1:
        raise node.refuse("a second output", "the maxima alone")
    x = inputs[0]
    kernel, strides, dilations = _pooling(node, x)
    x, pads = _padded(x, _pads(node, x.shape[2:], kernel, strides, dilations), -math.inf)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    return pool(x, kernel, strides, pads, dilations, ceil_mode=bool(node.get("ceil_mode", 0)))


def _average_pool(node: Node, inputs: list[Any]) -> Any:
    x = inputs[0]
    kernel, strides, dilations = _pooling(node, x)
    if any(dilation != 1 for dilation in dilations):
        raise node.refuse(f"dilations {dilations}", "none")
    counted = bool(node.get("count_include_pad", 0))
    pads = _pads(node, x.shape[2:], kernel, strides, dilations)
    padded, pads = _padded(x, pads, 0.0)
    if padded is not x and not counted:
        raise node.refuse("unequal pads that are not counted", "pads alike on both sides")
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    return pool(padded, kernel, strides, pads, ceil_mode=bool(node.get("ceil_mode", 0)), count_include_pad=counted)


def _resize(node: Node, inputs: list[Any]) -> Any:
    """Whole-number nearest, and linear on half pixels: what exporters write for upsampling."""
    x, scales, sizes = inputs[0], optional(inputs, 2), optional(inputs, 3)
    mode, places = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    target = ints(sizes) or [int(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
    if target[:2] != list(x.shape[:2]) or "axes" in node.attributes or x.dim() not in (3, 4, 5):
        raise node.refuse(f"{list(x.shape)} to {target}", "spatial axes only")
    whole = all(new % old == 0 for new, old in zip(target[2:], x.shape[2:], strict=True))
    if mode == "nearest" and whole and places in ("half_pixel", "asymmetric"):
        return functional.interpolate(x, target[2:], mode="nearest")
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    aligned = places == "align_corners"
    if mode == "linear" and (aligned or places in ("half_pixel", "pytorch_half_pixel")):
        return functional.interpolate(x, target[2:], mode=linear, align_corners=aligned)
    raise node.refuse(f"mode {mode} with {places}", "whole-number nearest, or linear")


# ---- products and normalisation ----------------------------------------------------------------


def _gemm(node: Node, inputs: list[Any]) -> Any:
    a, b, c = inputs[0], inputs[1], optional(inputs, 2)
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is None:
        product = a @ b
        return product if alpha == 1.0 else product * alpha
    return torch.addmm(c, a, b, alpha=alpha, beta=beta)


def _batch_normalization(node: Node, inputs: list[Any]) -> Any:
    x, scale, bias, mean, variance = inputs
    if node.get("training_mode", 0):
        raise node.refuse("training mode", "inference")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def _layer_normalization(node: Node, inputs: list[Any]) -> Any:
    if node.outputs > 1:
        raise node.refuse("mean or deviation as an output", "the normalised tensor alone")
    x, scale, bias = inputs[0], inputs[1], optional(inputs, 2)
    axis = node.get("axis", -1) % x.dim()
    shape = x.shape[axis:]
    return functional.layer_norm(
        x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), node.get("epsilon", 1e-5)
    )


def _rms_normalization(node: Node, inputs: list[Any]) -> Any:
    x, scale = inputs
    shape = x.shape[node.get("axis", -1) % x.dim() :]
    return functional.rms_norm(x, shape, scale.expand(shape), node.get("epsilon", 1e-5))


def _group_normalization(node: Node, inputs: list[Any]) -> Any:
    x, scale, bias = inputs
    groups = node.attributes["num_groups"]
    if node.opset < 21:  # one scale per group, later one per channel
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _softmax(function: Callable[..., Any]) -> Operator:
    def run(node: Node, inputs: list[Any]) -> Any:
        x = inputs[0]
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.dim()  # before: over all that follows the axis, as one
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return run


def _attention(node: Node, inputs: list[Any]) -> Any:
    q, k, v, mask = inputs[0], inputs[1], inputs[2], optional(inputs, 3)
    if any(each is not None for each in inputs[4:]) or node.outputs > 1 or q.dim() != 4 or node.get("softcap", 0.0):
        raise node.refuse("a cache, a softcap, a second output or packed heads", "[batch, heads, length, size]")
    causal, scale = bool(node.get("is_causal", 0)), node.get("scale", None)
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)


LAYERS: dict[str, Operator] = {
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": lambda node, inputs: inputs[0],
    "Einsum": lambda node, inputs: torch.einsum(node.attributes["equation"], *inputs),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, inputs: inputs[0].mean(tuple(range(2, inputs[0].dim())), keepdim=True),
    "GlobalMaxPool": lambda node, inputs: inputs[0].amax(tuple(range(2, inputs[0].dim())), keepdim=True),
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": lambda node, inputs: functional.instance_norm(
        inputs[0], weight=inputs[1], bias=inputs[2], eps=node.get("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": lambda node, inputs: torch.matmul(*inputs),
    "MaxPool": _max_pool,
    "RMSNormalization": _rms_normalization,
    "Resize": _resize,
    "Softmax": _softmax(torch.softmax),
}
