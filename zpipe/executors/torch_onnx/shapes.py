"""What moves values about, and the arithmetic of shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from zpipe.executors.torch_onnx.node import Node, Operator, ints, optional


def _shape(node: Node, inputs: list[Any]) -> Any:
    return torch.tensor(list(inputs[0].shape)[node.get("start", 0) : node.get("end", None)], dtype=torch.int64)


def _reshape(node: Node, inputs: list[Any]) -> Any:
    x, wanted = inputs[0], ints(inputs[1])
    if not node.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, inputs: list[Any]) -> Any:
    x, axis = inputs[0], node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _axes(node: Node, inputs: list[Any]) -> list[int]:
    return ints(optional(inputs, 1)) or list(node.get("axes", []))


def _squeeze(node: Node, inputs: list[Any]) -> Any:
    axes = _axes(node, inputs)
    return inputs[0].squeeze(tuple(axes)) if axes else inputs[0].squeeze()


def _unsqueeze(node: Node, inputs: list[Any]) -> Any:
    x, axes = inputs[0], _axes(node, inputs)
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, inputs: list[Any]) -> Any:
    return inputs[0].permute(*node.get("perm", range(inputs[0].dim())[::-1]))


def _expand(node: Node, inputs: list[Any]) -> Any:
    return inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, ints(inputs[1])))


def _split(node: Node, inputs: list[Any]) -> Any:
    x, axis = inputs[0], node.get("axis", 0)
    sizes = ints(optional(inputs, 1)) or list(node.get("split", []))
    if not sizes:
        parts = node.get("num_outputs", node.outputs)
        sizes = [-(-x.shape[axis] // parts)] * (parts - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    return x.split(sizes, axis)


def _slice(node: Node, inputs: list[Any]) -> Any:
    x, starts, ends = inputs[0], ints(inputs[1]), ints(inputs[2])
    axes = ints(optional(inputs, 3)) or list(range(len(starts)))
    steps = ints(optional(inputs, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, step = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            x = x.narrow(axis, first, max(last - first, 0))
            x = x if step == 1 else x[(slice(None),) * (axis % x.dim()) + (slice(None, None, step),)]
        else:  # torch has no negative steps: the same elements forwards, then turned round
            count = len(range(first, last, step))
            lowest = first + (count - 1) * step
            kept = x[(slice(None),) * (axis % x.dim()) + (slice(lowest, first + 1, -step),)] if count else x.narrow(axis, 0, 0)
            x = kept.flip(axis)
    return x


def _gather(node: Node, inputs: list[Any]) -> Any:
    x, indices = inputs
    axis = node.get("axis", 0) % x.dim()
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, wrapped.reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: Node, inputs: list[Any]) -> Any:
    x, indices = inputs
    axis = node.get("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _tile(node: Node, inputs: list[Any]) -> Any:
    return inputs[0].repeat(*ints(inputs[1]))


def _pad(node: Node, inputs: list[Any]) -> Any:
    x, pads, value = inputs[0], ints(inputs[1]), optional(inputs, 2)
    axes = ints(optional(inputs, 3)) or list(range(x.dim()))
    sides = [[0, 0] for _ in range(x.dim())]
    for place, axis in enumerate(axes):
        sides[axis % x.dim()] = [pads[place], pads[place + len(axes)]]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[node.get("mode", "constant")]
    if mode == "constant":
        flat = [side for pair in reversed(sides) for side in pair]
        return functional.pad(x, flat, value=0 if value is None else value.item())
    if any(map(any, sides[:2])):
        raise node.refuse(f"mode {mode} on batch or channels", "spatial axes only")
    return functional.pad(x, [side for pair in reversed(sides[2:]) for side in pair], mode=mode)


def _constant_of_shape(node: Node, inputs: list[Any]) -> Any:
    value = node.get("value", torch.zeros(1))
    return torch.full(ints(inputs[0]), value.item(), dtype=value.dtype)


def _arange(node: Node, inputs: list[Any]) -> Any:
    start, limit, step = inputs
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _trilu(node: Node, inputs: list[Any]) -> Any:
    diagonal = sum(ints(optional(inputs, 1)))
    return torch.triu(inputs[0], diagonal) if node.get("upper", 1) else torch.tril(inputs[0], diagonal)


def _depth_to_space(node: Node, inputs: list[Any]) -> Any:
    x, size = inputs[0], node.attributes["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // size**2, height * size, width * size)


SHAPES: dict[str, Operator] = {
    "Concat": lambda node, inputs: torch.cat(inputs, node.attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _arange,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda node, inputs: torch.tensor(inputs[0].numel(), dtype=torch.int64),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
