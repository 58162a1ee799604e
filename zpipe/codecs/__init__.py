"""Activation codecs: smaller activations for slow links, made one by one for a stage's entrance.

    none         the activation itself, never copied
    fp16         IEEE half precision, 2 bytes a value
    int8         1 byte a value and a 2-byte scale per sample and channel (`zpipe.codecs.int8`)
    int8+zstd    the same, compressed without loss: one zstd frame per message, so its length varies (`zpipe.codecs.zstd`)
    bottleneck   channels mixed down by a learned 1x1 convolution, then int8 (`zpipe.codecs.bottleneck`)

Rules that hold for each of them:

1. Only floating-point activations are coded with loss. What enters stage 0 stays as it is, whatever its type (what its loss
   would cost is not measured), and `int8+zstd` compresses it.
2. What a row decodes to depends on that row alone, bit for bit, whatever batch it travelled in. So a table of replayed
   answers, made at batch 1, holds for every run.
3. `prefix_bytes` lead each row and arrive as they left.
4. A coded batch is uint8 `[rows, row_bytes]`; of a packed codec uint8 `[n]`, n <= rows * row_bytes. Whatever bytes a peer sends
   in these sizes, decoding gives the stage's input or WireError, and takes no more memory than a full batch.

    codec = make_codec("int8", bundle.stages[1].input)
    payload = codec.encode(batch)                 # what the wire carries
    batch = codec.decode(payload, rows)           # [rows, *shape] again

A codec is for one thread at a time (zstd keeps its working memory between calls).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from zpipe.bundle import Bundle
from zpipe.codecs.base import Codec, RawCodec, RowCodec
from zpipe.codecs.bottleneck import Bottleneck, BottleneckWeights, load_bottleneck
from zpipe.codecs.choice import Candidate, CodecChoice, accuracy_lost, choose_codec, measured_codecs
from zpipe.codecs.fp16 import Fp16
from zpipe.codecs.int8 import Int8
from zpipe.codecs.zstd import ZstdCodec
from zpipe.errors import ConfigError
from zpipe.model import CODECS, NO_CODEC, TensorSpec

__all__ = [
    "Bottleneck",
    "BottleneckWeights",
    "Candidate",
    "Codec",
    "CodecChoice",
    "accuracy_lost",
    "choose_codec",
    "load_bottleneck",
    "make_codec",
    "make_codecs",
    "measured_codecs",
    "row_bytes",
]

_FLOATS = ("float16", "float32")


def make_codec(
    name: str,
    spec: TensorSpec,
    *,
    weights: BottleneckWeights | None = None,
    prefix_bytes: int = 0,
    typical_bytes: float | None = None,
    lossless: bool = False,
) -> Codec:
    """The codec of that name for one stage's entrance; where it would change nothing, the codec `none`.

    Args:
        name: one of `zpipe.model.CODECS`.
        spec: one sample as the stage takes it.
        weights: of the autoencoder at this cut, for `bottleneck`; without them that codec is `int8` here (its bundle found
            this cut not worth an autoencoder).
        prefix_bytes: that many raw bytes lead each row; a batch is then uint8 `[rows, prefix_bytes + spec.bytes]`.
        typical_bytes: mean size of a row without its prefix, where it was measured; tells only of a packed codec.
        lossless: leave floats as they are, too.

    Raises:
        ConfigError: no codec has that name.
    """
    raw = RawCodec(spec, prefix_bytes)
    floats = spec.dtype in _FLOATS and not lossless
    if name == "int8+zstd":
        inner = RowCodec("int8", spec, Int8(spec.shape), prefix_bytes) if floats else raw
        typical = None if typical_bytes is None else round(prefix_bytes + typical_bytes)
        return ZstdCodec(name, inner, typical_row_bytes=typical)
    if name not in CODECS:
        raise ConfigError(f"codec: found {name!r}, expected one of {', '.join(CODECS)}")
    if name == NO_CODEC or not floats or (name == "fp16" and spec.dtype == "float16"):
        return raw
    if name == "fp16":
        return RowCodec(name, spec, Fp16(spec.shape), prefix_bytes)
    if name == "int8" or weights is None:
        return RowCodec(name, spec, Int8(spec.shape), prefix_bytes)
    return RowCodec(name, spec, Bottleneck(spec.shape, weights), prefix_bytes)


def make_codecs(bundle: Bundle, names: Iterable[str]) -> dict[tuple[str, int], Codec]:
    """{(name, stage): the codec at that stage's entrance} for every stage of a bundle, or of its emulation.

    Raises:
        ConfigError: no codec has one of the names.
        BundleError: `bottleneck` of a bundle that has none, or whose file is damaged.
    """
    names = tuple(names)
    weights = load_bottleneck(bundle) if "bottleneck" in names else {}
    entrances = {chain[0] for chain in bundle.chains}
    sizes = {(name, cut): size for name, row in bundle.codecs.items() for cut, size in enumerate(row.cut_bytes)}
    return {
        (name, stage.index): make_codec(
            name,
            stage.input,
            weights=weights.get(stage.index - 1),
            prefix_bytes=bundle.prefix_bytes,
            typical_bytes=sizes.get((name, stage.index - 1)),
            lossless=stage.index in entrances,
        )
        for name in names
        for stage in bundle.real.stages
    }


@lru_cache(maxsize=64)
def row_bytes(bundle: Bundle, name: str) -> tuple[int, ...]:
    """Per stage, the bytes that one row of its input typically has on a link with this codec.

    Raises:
        ConfigError, BundleError: as `make_codecs`.
    """
    return tuple(codec.typical_row_bytes for codec in make_codecs(bundle, (name,)).values())
