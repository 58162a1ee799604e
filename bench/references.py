"""The reference networks in full size, in four and in five stages: sizes, cuts, and how far they are from the un-split network.

    python -m bench.references               writes bench/results/references.json; 15 minutes on two busy cores, 4 GB of memory
    python -m bench.references gpt2-small    some of them, printed alone

Random weights, as `zpipe train --random` makes them, but for fewer samples. `parity_error` is the largest difference of any
activation or logit between torch and the exported stages, and of the last logits between the chain of stages and the un-split
network in torch, over the largest value of that tensor. `agreement`: of the evaluation samples, how many the chain labels as the
un-split network.
Needs the extra `train`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zpipe.bundle import MANIFEST
from zpipe.models import RECIPES, make_untrained
from zpipe.report.machine import machine

RESULTS = Path(__file__).parent / "results" / "references.json"
#: Two recipes of one network in other widths are left out.
NAMES = [name for name in RECIPES if name not in ("digits-mobilenetv2-half", "digits96-mobilenetv2")]
SAMPLES = 8


def main() -> None:
    names = sys.argv[1:] or NAMES
    from zpipe.models import untrained

    untrained.EVALUATION = SAMPLES
    rows = []
    for name in names:
        for stages in (4, 5):
            rows.append(measure(name, stages))
            print(json.dumps(rows[-1]), flush=True)
    if names == NAMES:
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measure(name: str, stages: int) -> dict[str, Any]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = make_untrained(name, out=Path(scratch) / "bundle", stages=stages)
        manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
        file_bytes = bundle.stage_file_bytes()
    return {
        "recipe": name,
        "stages": stages,
        "macs": [spec.macs for spec in bundle.stages],
        "parameters": [row["parameters"] for row in manifest["stages"]],
        "file_bytes": list(file_bytes),
        "cut_bytes": [spec.output.bytes for spec in bundle.stages if spec.output is not None],
        "bottleneck_bytes": bundle.codecs["bottleneck"].cut_bytes[0] if "bottleneck" in bundle.codecs else None,
        "parity_error": manifest["training"]["onnx_parity_error"],
        "agreement": bundle.point("no-exit").test.accuracy,
        "seconds": round(time.monotonic() - start, 1),
    }


if __name__ == "__main__":
    main()
