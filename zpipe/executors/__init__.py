"""Stage executors: the only code that imports onnxruntime, TensorRT, pycuda or torch, each lazily in its own file.

    trt           TensorRT engines on an NVIDIA GPU, found where `zpipe build` put them, or built at a node's start
    torch-cuda    torch on an NVIDIA GPU
    onnx          ONNX Runtime on the CPU
    auto          the first of these three that works where the node runs, a topology's default
    emulated      boards that are not here: recorded answers, and the time a board would take

An executor of your own is a class that keeps `StageExecutor`. A topology names it by module and class, and every process that
hosts a stage imports it from there: one that `Pipeline.local` starts, or `zpipe bench`, finds what its parent finds, `zpipe node`
what is installed or on PYTHONPATH. Nothing that comes over the network is ever imported, but a topology file can make a node
run what it names: read one before you use it.

    nodes:
      - {rank: 1, stages: [1, 2], executor: "robot.vision:Engine"}

    class Engine:
        inline = False  # its runs go to a worker thread

        def __init__(self, bundle, stages):
            self.stages = tuple(sorted(stages))

        def warm_up(self, max_batch): ...
        def close(self): ...

        def run(self, stage, inputs, gate):
            wall, cpu = time.perf_counter(), time.thread_time()
            activation, logits = my_engine(stage, inputs)  # activation: None at the last stage
            decision = evaluate_gate(logits, gate)         # or undecided(stage, len(inputs), gate) without an exit head
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            return StageOutput(activation, *decision, wall, cpu)

The activation holds all rows, or those alone that do not exit. For bundles of students its class says `scores = True` and its
runs give `StageOutput(activation, *decision, wall, cpu, wanted_scores(logits, gate))`. It may take keywords `device` and
`max_batch`, the topology's, and `note`, which takes a line for people. What it raises, or gives and does not fit the stage, costs
the samples of that batch an attempt and the node nothing; `zpipe.ExecutorLost` takes the node's stages out of service.
"""

from zpipe.executors.base import EXECUTORS, StageExecutor, StageOutput, make_executor
from zpipe.executors.gate import GateDecision, evaluate_gate, undecided, wanted_scores
from zpipe.model import GateSpec

__all__ = [
    "EXECUTORS",
    "GateDecision",
    "GateSpec",
    "StageExecutor",
    "StageOutput",
    "evaluate_gate",
    "make_executor",
    "undecided",
    "wanted_scores",
]
