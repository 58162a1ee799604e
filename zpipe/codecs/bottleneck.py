"""A learned bottleneck: a 1x1 convolution mixes the channels of a cut down to fewer, another mixes them up again.

Source: MDI-Exit (arXiv:2408.05247) puts such an autoencoder at ResNet-50's first cut; differs: linear, at any cut, and what
lies between its halves is sent as int8.

`bottleneck.npz` of a bundle holds, float32, for each cut that has one (K = the stage that makes the activation):

    cutK.encode  [small, channels]    cutK.encode_bias  [small]
    cutK.decode  [channels, small]    cutK.decode_bias  [channels]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zpipe.bundle import Bundle
from zpipe.codecs.base import Bytes, Floats
from zpipe.codecs.int8 import Int8
from zpipe.errors import BundleError


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckWeights:
    """The autoencoder of one cut; shapes as in the module docstring."""

    encode: Floats
    encode_bias: Floats
    decode: Floats
    decode_bias: Floats


class Bottleneck:
    """`float32 [rows, channels, height, width]`, one matrix product per row on either side."""

    def __init__(self, shape: tuple[int, ...], weights: BottleneckWeights) -> None:
        self._shape = shape
        self._encode, self._decode = np.ascontiguousarray(weights.encode), np.ascontiguousarray(weights.decode)
        self._encode_bias, self._decode_bias = weights.encode_bias[:, np.newaxis], weights.decode_bias[:, np.newaxis]
        self._int8 = Int8((len(self._encode), *shape[1:]))
        self.bytes = self._int8.bytes

    def encode(self, values: Floats, out: Bytes) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # a row that is not finite stays so, and its neighbours as they are
            mixed = self._encode @ values.reshape(len(values), self._shape[0], -1)
            mixed += self._encode_bias
        self._int8.encode(mixed, out)

    def decode(self, coded: Bytes) -> Floats:
        small = self._int8.decode(coded)
        with np.errstate(invalid="ignore", over="ignore"):  # a scale may be any bits
            mixed: Floats = self._decode @ small.reshape(len(coded), len(self._encode), -1)
            mixed += self._decode_bias
        return mixed.reshape(len(coded), *self._shape)


def load_bottleneck(bundle: Bundle) -> dict[int, BottleneckWeights]:
    """{K: the autoencoder between stage K and K + 1}, for the cuts that have one.

    Raises:
        BundleError: the bundle has none, or an array does not fit its cut.
    """
    arrays = bundle.bottleneck()
    cuts = {}
    for stage in bundle.real.stages[:-1]:
        assert stage.output is not None
        names = [f"cut{stage.index}.{part}" for part in ("encode", "encode_bias", "decode", "decode_bias")]
        if not any(name in arrays for name in names):
            continue
        channels = stage.output.shape[0]
        small = arrays[names[0]].shape[0] if names[0] in arrays and arrays[names[0]].ndim == 2 else 0
        shapes = ((small, channels), (small,), (channels, small), (channels,))
        for name, shape in zip(names, shapes, strict=True):
            found = arrays[name].shape if name in arrays else None
            if found != shape or not small:
                wanted = " ".join(str(list(each)) for each in shapes)
                raise BundleError(
                    f"{bundle.path}: bottleneck {name}: found {list(found) if found else 'no array'}, expected the four arrays of "
                    f"this cut to be {wanted} with one small number of channels; make the bundle anew with `zpipe train`"
                )
        cuts[stage.index] = BottleneckWeights(*(arrays[name] for name in names))
    return cuts
