"""What the networks of PA-MDI's evaluation cost, stage by stage: multiply-adds and what crosses each cut, from layers' shapes.

Convolutions and linear layers are counted, as everybody counts them; normalisations, activations, pooling and sums are not.
Nothing here computes: there are no weights. `zpipe.models` has the same networks to run (a test compares the figures).

Sources: ResNet arXiv:1512.03385, table 1 and section 4.2; GPT-2 Radford et al., Language Models are Unsupervised Multitask
Learners, 2019, its smallest model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zpipe.model import TensorSpec

#: Tokens of one GPT-2 sample. The paper's prompts are not known to us; 64 is what `zpipe train --random gpt2-small` has, about 50
#: English words. Work grows with it as good as linearly (attention is 1.4 % of a layer here), bytes exactly so.
TOKENS = 64


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that a network is cut into: a residual block, a transformer layer.

    Attributes:
        macs: multiply-adds of one sample.
        output: one sample's activation behind it.
    """

    macs: int
    output: TensorSpec


@dataclass(frozen=True, slots=True)
class Profile:
    """A network as a chain of stages that only cost.

    Attributes:
        name: of its bundle.
        input: one sample at the source.
        classes: of the only exit, at the end.
        stages: in order; the last one's output is what its answer is read from, and stays where it is.
        why: why it is cut so.
    """

    name: str
    input: TensorSpec
    classes: int
    stages: tuple[Unit, ...]
    why: str

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample."""
        return sum(stage.macs for stage in self.stages)


def resnet50(*, stride_in_3x3: bool = True) -> Profile:
    """ResNet-50 for ImageNet, a stage for each of its 16 blocks.

    Args:
        stride_in_3x3: where a block halves the picture: in its 3x3 convolution, as torchvision and everybody since have it (4.09 G
            multiply-adds), or in its first one, as in the paper (3.8 G).
    """
    blocks = [_Picture(3, 224).convolved(64, 7, 2).pooled(2)]
    for group, repeats in enumerate((3, 4, 6, 3)):
        for repeat in range(repeats):
            blocks.append(_bottleneck(blocks[-1], 64 << group, 2 if group and not repeat else 1, stride_in_3x3=stride_in_3x3))
    return Profile(
        "resnet50",
        TensorSpec("uint8", (3, 224, 224)),
        1000,
        _stages(blocks, per_stage=1, classes=1000),
        "a stage is a residual block, the first one with the stem, the last one with the classifier (3 % and 0.05 % of all work)",
    )


def resnet56(*, projected: bool = False) -> Profile:
    """ResNet-56 for CIFAR, three of its 27 blocks a stage.

    Args:
        projected: whether shortcuts that change the shape are 1x1 convolutions (option B) or cost nothing (option A, the paper's).
    """
    blocks = [_Picture(3, 32).convolved(16, 3)]
    for group in range(3):
        for repeat in range(9):
            blocks.append(_basic(blocks[-1], 16 << group, 2 if group and not repeat else 1, projected=projected))
    return Profile(
        "resnet56",
        TensorSpec("uint8", (3, 32, 32)),
        10,
        _stages(blocks, per_stage=3, classes=10),
        "a stage is three residual blocks: one alone is half a millisecond on the fast boxes, less than sending it away takes",
    )


def gpt2(*, tokens: int = TOKENS) -> Profile:
    """GPT-2 with 124 M parameters, a stage for each of its 12 layers; a sample is a window of tokens, its answer the next one."""
    width, layers, vocabulary = 768, 12, 50257
    # Queries, keys, values and their projection 4 width^2, the two wide layers 8 width^2 a token; scores and the mean by them.
    layer = Unit(12 * width * width * tokens + 2 * tokens * tokens * width, TensorSpec("float32", (tokens, width)))
    last = Unit(layer.macs + width * vocabulary, layer.output)  # logits of the last token alone
    return Profile(
        "gpt2",
        TensorSpec("int64", (tokens,)),
        vocabulary,
        (*[layer] * (layers - 1), last),
        "a stage is a layer, the last one with the logits",
    )


# ---- pictures on their way through a ResNet ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Picture:
    """`[channels, side, side]`, and the multiply-adds of the unit that made it."""

    channels: int
    side: int
    macs: int = 0

    def convolved(self, channels: int, kernel: int, stride: int = 1) -> _Picture:
        """Padded so that only a stride makes it smaller."""
        side = self.side // stride
        return _Picture(channels, side, self.macs + channels * side * side * self.channels * kernel * kernel)

    def pooled(self, stride: int) -> _Picture:
        return _Picture(self.channels, self.side // stride, self.macs)

    @property
    def entered(self) -> _Picture:
        """The same at the entrance of the next unit."""
        return _Picture(self.channels, self.side)


def _bottleneck(before: _Picture, middle: int, stride: int, *, stride_in_3x3: bool) -> _Picture:
    start = before.entered
    first, second = (1, stride) if stride_in_3x3 else (stride, 1)
    after = start.convolved(middle, 1, first).convolved(middle, 3, second).convolved(4 * middle, 1)
    return _joined(after, start, stride, projected=True)


def _basic(before: _Picture, channels: int, stride: int, *, projected: bool) -> _Picture:
    start = before.entered
    return _joined(start.convolved(channels, 3, stride).convolved(channels, 3), start, stride, projected=projected)


def _joined(after: _Picture, start: _Picture, stride: int, *, projected: bool) -> _Picture:
    """With the shortcut, which is a 1x1 convolution where the shape changes."""
    changed = (after.channels, after.side) != (start.channels, start.side)
    extra = start.convolved(after.channels, 1, stride).macs if changed and projected else 0
    return _Picture(after.channels, after.side, after.macs + extra)


def _stages(pictures: Sequence[_Picture], *, per_stage: int, classes: int) -> tuple[Unit, ...]:
    """The stem joins the first block, the classifier (global average, one linear layer) the last."""
    stem, *blocks = pictures
    return tuple(_grouped(stem, blocks, per_stage, classes))


def _grouped(stem: _Picture, blocks: Sequence[_Picture], per_stage: int, classes: int) -> Iterator[Unit]:
    for start in range(0, len(blocks), per_stage):
        mine = blocks[start : start + per_stage]
        last = mine[-1]
        macs = sum(block.macs for block in mine) + (stem.macs if start == 0 else 0)
        macs += last.channels * classes if start + per_stage >= len(blocks) else 0
        yield Unit(macs, TensorSpec("float32", (last.channels, last.side, last.side)))
