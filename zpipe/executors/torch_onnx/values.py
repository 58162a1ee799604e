"""What works on single values, or gathers them along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from zpipe.executors.torch_onnx.node import Node, Operator, ints, optional


def _plain(function: Callable[..., Any]) -> Operator:
    """An operator that is one of torch's, on the same inputs."""
    return lambda node, inputs: function(*inputs)


def _with_attributes(function: Callable[..., Any], **defaults: float) -> Operator:
    """One of torch's that takes these attributes by position."""
    return lambda node, inputs: function(inputs[0], *(node.get(name, value) for name, value in defaults.items()))


def _clip(node: Node, inputs: list[Any]) -> Any:
    x, low, high = inputs[0], optional(inputs, 1), optional(inputs, 2)
    if low is None and high is None:
        return x
    return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())


def _divide(node: Node, inputs: list[Any]) -> Any:
    floating = inputs[0].is_floating_point()
    return torch.div(*inputs) if floating else torch.div(*inputs, rounding_mode="trunc")


def _modulo(node: Node, inputs: list[Any]) -> Any:
    return torch.fmod(*inputs) if node.get("fmod", 0) else torch.remainder(*inputs)


def _power(node: Node, inputs: list[Any]) -> Any:
    return torch.pow(*inputs).to(inputs[0].dtype)


def _gelu(node: Node, inputs: list[Any]) -> Any:
    return functional.gelu(inputs[0], approximate=node.get("approximate", "none"))


def _hard_sigmoid(node: Node, inputs: list[Any]) -> Any:
    return torch.clamp(inputs[0] * node.get("alpha", 0.2) + node.get("beta", 0.5), 0.0, 1.0)


def _prelu(node: Node, inputs: list[Any]) -> Any:
    x, slope = inputs
    return torch.where(x < 0, x * slope, x)


def _cast(node: Node, inputs: list[Any]) -> Any:
    return inputs[0].to(node.dtype(node.attributes["to"]))


def _cast_like(node: Node, inputs: list[Any]) -> Any:
    return inputs[0].to(inputs[1].dtype)


def _fold(function: Callable[[Any, Any], Any]) -> Operator:
    """An operator of any number of inputs from one of two."""

    def run(node: Node, inputs: list[Any]) -> Any:
        result = inputs[0]
        for each in inputs[1:]:
            result = function(result, each)
        return result

    return run


def _mean(node: Node, inputs: list[Any]) -> Any:
    return _fold(torch.add)(node, inputs) / len(inputs)


def _reduce(function: Callable[[Any, list[int], bool], Any]) -> Operator:
    def run(node: Node, inputs: list[Any]) -> Any:
        x = inputs[0]
        axes = ints(optional(inputs, 1)) or list(node.get("axes", []))
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        return function(x, [axis % x.dim() for axis in axes], bool(node.get("keepdims", 1)))

    return run


def _product(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Any]) -> Operator:
    def run(node: Node, inputs: list[Any]) -> Any:
        if node.get("select_last_index", 0):
            raise node.refuse("select_last_index", "the first of equals")
        return function(inputs[0], dim=node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))

    return run


def _cumulative_sum(node: Node, inputs: list[Any]) -> Any:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise node.refuse("exclusive or reverse", "neither")
    return inputs[0].cumsum(ints(inputs[1])[0]).to(inputs[0].dtype)


def _top_k(node: Node, inputs: list[Any]) -> Any:
    return tuple(inputs[0].topk(ints(inputs[1])[0], dim=node.get("axis", -1), largest=bool(node.get("largest", 1))))


VALUES: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "CumSum": _cumulative_sum,
    "Div": _divide,
    "Elu": _with_attributes(functional.elu, alpha=1.0),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": lambda node, inputs: inputs[0],
    "IsInf": _plain(torch.isinf),
    "IsNaN": _plain(torch.isnan),
    "LeakyRelu": _with_attributes(functional.leaky_relu, alpha=0.01),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "Max": _fold(torch.maximum),
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": _modulo,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype)),
    "Relu": _plain(torch.relu),
    "Round": _plain(torch.round),
    "Selu": _plain(functional.selu),
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _plain(torch.tanh),
    "TopK": _top_k,
    "Where": lambda node, inputs: torch.where(*inputs),
    "Xor": _plain(torch.logical_xor),
}
