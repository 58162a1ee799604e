"""Classifying what people have: pictures, folders of them, archives, videos, a camera, frames on standard input.

    plan = prepare_inference(InferOptions(topology="line4.yaml", inputs=("photo.jpg",)))
    tally = await run_inference(plan, answered=..., skipped=..., progress=...)

`inputs.py` opens what was named, `feed.py` reads it on a thread beside the event loop, `run.py` takes it through a pipeline and
gives the answers in the order of the inputs, `results.py` writes and resumes their lines, `labelled.py` draws them on pictures.
At no time is more in memory than the window of `run.py`, the names in one folder, and eight bytes for each line resumed.
"""

from __future__ import annotations

from zpipe.infer.inputs import PIXELS, RawFormat
from zpipe.infer.items import Answer, Item, Shaper, Skipped
from zpipe.infer.results import Results, to_line
from zpipe.infer.run import InferOptions, Plan, Tally, prepare_inference, run_inference, shaper_of

__all__ = [
    "PIXELS",
    "Answer",
    "InferOptions",
    "Item",
    "Plan",
    "RawFormat",
    "Results",
    "Shaper",
    "Skipped",
    "Tally",
    "prepare_inference",
    "run_inference",
    "shaper_of",
    "to_line",
]
