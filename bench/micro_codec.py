"""What the link codecs cost for the largest cut of the digits bundle: `python -m bench.micro micro_codec`.

Rows are activations of the bundle's own evaluation images, computed here by ONNX Runtime, since some codecs take longer or save
less on other numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from zpipe.bundle import Bundle, load_bundle
from zpipe.codecs import make_codecs
from zpipe.executors.base import make_executor
from zpipe.model import CODECS, NO_CODEC, GateSpec

#: The stage that the rows enter.
STAGE = 1


@cache
def bundle() -> Bundle:
    return load_bundle("digits-mobilenetv2", verify=False)


@cache
def rows(count: int) -> npt.NDArray[Any]:
    """What enters STAGE, `[count, *shape]`."""
    images = bundle().evaluation().images
    executor = make_executor("onnx", bundle(), [STAGE - 1])
    gate = GateSpec("max-probability", 1.0, (2.0,) * count)  # no threshold above 1 lets anything leave
    activation = executor.run(STAGE - 1, images[:: len(images) // count][:count], gate).activation
    executor.close()
    assert activation is not None
    return np.asarray(activation)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != NO_CODEC])
def test_encode(benchmark: Any, codec: str, count: int) -> None:
    packer, batch = make_codecs(bundle(), [codec])[codec, STAGE], rows(count)
    benchmark.extra_info["bytes_share"] = packer.encode(batch).nbytes / batch.nbytes
    benchmark(lambda: packer.encode(batch))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != NO_CODEC])
def test_decode(benchmark: Any, codec: str, count: int) -> None:
    packer = make_codecs(bundle(), [codec])[codec, STAGE]
    payload = packer.encode(rows(count))
    benchmark(lambda: packer.decode(payload, count))
