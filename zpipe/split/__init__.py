"""Cutting a network of one's own into stages: an ONNX file, or a torch module that is exported to one.

`split_model` writes a bundle that everything else here runs. Where a network may be cut is found from its graph
(`zpipe.split.cuts`), what its tensors are by running it (`zpipe.split.network`), and the stages are compared with the original
before anything is written (`zpipe.split.verify`). The stages before the last have no exit head.

Needs onnx (the extra `split`); a torch module also needs the extra `train`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zpipe.bundle import MANIFEST
from zpipe.errors import BackendUnavailable

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.split.cuts import Cut

__all__ = ["Listing", "Record", "SplitOptions", "list_cuts", "split_model", "split_record"]

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """What one split does; every path and name as the user gave it.

    Attributes:
        model: an ONNX file, or `package.module:factory` (or `file.py:factory`) for a torch module.
        out: the bundle's folder; None = `engines/` and the model's name.
        topology: write a line of nodes for it there, if given.
        weights: of a torch module: its state dict.
        example_shape: of one sample; for open axes, and for torch.
        example_dtype: of one sample, for torch.
        output: which output is the answer.
        cuts: where, as `TENSOR` or `TENSOR,TENSOR`; () = chosen.
        stages: how many, chosen by equal cost.
        devices: a devices file; cuts are then chosen for a line of these.
        crossing: tensors that may cross a cut that is chosen.
        mean, std: per channel, in units of 0..1: stage 0 then takes bytes and normalises.
        data, test: labelled samples to calibrate and test with.
        classes: a file with the names of the classes.
        samples: most samples of each split.
        replace: whether a bundle and a topology file that are there may be replaced.
        seed: of made-up samples.
    """

    model: str
    out: Path | None = None
    topology: Path | None = None
    weights: Path | None = None
    example_shape: tuple[int, ...] | None = None
    example_dtype: str | None = None
    output: str | None = None
    cuts: tuple[str, ...] = ()
    stages: int = 4
    devices: str | None = None
    crossing: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: Path | None = None
    test: Path | None = None
    classes: Path | None = None
    samples: int = 1000
    replace: bool = False
    seed: int = 0

    @property
    def stem(self) -> str:
        """The model's name without path and ending; of a torch module its factory's."""
        return self.model.rpartition(":")[2] if ":" in self.model and not Path(self.model).is_file() else Path(self.model).stem

    @property
    def folder(self) -> Path:
        """Where the bundle goes."""
        return self.out if self.out is not None else Path("engines") / self.stem

    @property
    def name(self) -> str:
        """The bundle's."""
        return self.folder.absolute().name


@dataclass(frozen=True, slots=True)
class Listing:
    """Where a network may be cut.

    Attributes:
        macs: multiply-adds of the whole for one sample.
        input_bytes: of one sample as it comes in.
        cuts: worth it, in topological order.
        others: how many more there are, such as between a convolution and its activation.
        crossing: where there is none, how many tensors have to be let cross for one; None where no number does.
    """

    macs: int
    input_bytes: int
    cuts: Sequence[Cut]
    others: int
    crossing: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What a split bundle's manifest says of how it was made.

    Attributes:
        answer: what was changed at the network's end, for people; "" where nothing was.
        parity_error: most that the stages' logits differed from the network's, relative to the largest beyond 1.
        parity_limit: most that it might have been.
        half: whether the network computes in half precision.
    """

    answer: str
    parity_error: float
    parity_limit: float
    half: bool


def split_model(options: SplitOptions, *, progress: Progress = lambda line, done: None) -> Bundle:
    """Cut a network and write its bundle, which appears only when its stages have said what the original says.

    Raises:
        ConfigError: something about the model, the cuts, the data or the folder is not as it must be; one line.
        BackendUnavailable: a library is absent.
    """
    _require_libraries()
    from zpipe.split.run import run_split

    return run_split(options, progress)


def list_cuts(options: SplitOptions, *, progress: Progress = lambda line, done: None) -> Listing:
    """Where it may be cut; writes nothing.

    Raises:
        ConfigError, BackendUnavailable: as `split_model`.
    """
    _require_libraries()
    from zpipe.split.cuts import crossing_for
    from zpipe.split.run import listed_cuts, opened

    with opened(options, progress) as network:
        cuts, best = listed_cuts(network, options)
        more = None if best else crossing_for(network, places=1)
        return Listing(sum(network.macs), network.takes.bytes, best, len(cuts) - len(best), more)


def split_record(bundle: Bundle) -> Record:
    """How a bundle that `split_model` wrote was made."""
    row = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))["split"]
    return Record(row["answer"], row["parity_error"], row["parity_limit"], row["half"])


def _require_libraries() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise BackendUnavailable("found no onnx, expected it to cut networks; run: pip install 'zpipe[split]'")
