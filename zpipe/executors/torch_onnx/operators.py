"""Which function does which operator, and what each must know on the host.

Known are the operators that exported convolutional nets and transformers consist of, opset 11 and later, as inference needs them.
Source: the operator schemas of ONNX; where their text leaves a choice, what ONNX Runtime's CPU provider does (the tests compare).
"""

from __future__ import annotations

from zpipe.executors.torch_onnx.layers import LAYERS
from zpipe.executors.torch_onnx.node import Operator
from zpipe.executors.torch_onnx.shapes import SHAPES
from zpipe.executors.torch_onnx.values import VALUES

#: Which inputs of an operator have to be known on the host.
ON_HOST: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
}
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
ON_HOST |= dict.fromkeys((*_REDUCTIONS, "ReduceSumSquare"), (1,))

#: What these give is known on the host wherever their input lies.
GIVES_HOST = ("Shape", "Size")


OPERATORS: dict[str, Operator] = {**LAYERS, **SHAPES, **VALUES}
