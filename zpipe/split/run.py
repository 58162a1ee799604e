"""`zpipe split`: from a model file to a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zpipe.boards import load_boards
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.bundle.write import replaced_when_done, written_when_done
from zpipe.errors import ConfigError
from zpipe.models import require_libraries
from zpipe.split import SplitOptions
from zpipe.split.cuts import Cut, cut_equally, cut_for_boards, find_cuts, named_cuts, worthwhile
from zpipe.split.data import find_samples
from zpipe.split.network import Network, make_network
from zpipe.split.pixels import find_pixels
from zpipe.split.reading import read_original
from zpipe.split.writing import Tell, line_topology, write_bundle
from zpipe.topology import load_topology


@contextmanager
def opened(options: SplitOptions, tell: Tell) -> Iterator[Network]:
    """The network; what had to be exported for it lies in a folder of its own until the end.

    Raises:
        ConfigError, BackendUnavailable: as `split_model`.
    """
    if ":" not in options.model or Path(options.model).is_file():
        for option, value in (("--weights", options.weights), ("--example-dtype", options.example_dtype)):
            if value is not None:
                raise ConfigError(f"{option}: found {value} with an ONNX file, expected none, as the file says it; leave it out")
        yield _network(Path(options.model), options, tell)
        return
    if options.example_shape is None:
        raise ConfigError(f"{options.model}: found no --example-shape, expected one sample's, as a torch model has none: 3,32,32")
    tell("exporting", 0.0)
    require_libraries("exporting a torch module")
    from zpipe.models.own import export_module

    with tempfile.TemporaryDirectory(prefix="zpipe-split-") as scratch:
        file = Path(scratch) / f"{options.stem}.onnx"
        export_module(
            options.model, weights=options.weights, shape=options.example_shape, dtype=options.example_dtype or "float32", out=file
        )
        yield _network(file, options, tell)


def _network(path: Path, options: SplitOptions, tell: Tell) -> Network:
    tell("reading", 0.0)
    original = read_original(path, name=options.model, output=options.output, shape=options.example_shape)
    return make_network(original, pixels=find_pixels(original, options.mean, options.std))


def listed_cuts(network: Network, options: SplitOptions) -> tuple[list[Cut], list[Cut]]:
    """Every place to cut, and those of them that are worth it."""
    cuts = find_cuts(network, most=options.crossing)
    return cuts, worthwhile(cuts)


def chosen_cuts(network: Network, options: SplitOptions) -> list[Cut]:
    """What the options ask for.

    Raises:
        ConfigError: it cannot be had; one line.
    """
    if options.cuts:
        return named_cuts(network, options.cuts)
    _, cuts = listed_cuts(network, options)
    if options.devices is not None:
        return cut_for_boards(network, cuts, load_boards(options.devices))
    return cut_equally(network, cuts, options.stages)


def run_split(options: SplitOptions, tell: Tell) -> Bundle:
    """See `zpipe.split.split_model`."""
    out = options.folder
    _check_free(out, options)
    with opened(options, tell) as network:
        cuts = chosen_cuts(network, options)
        samples = find_samples(
            network, data=options.data, test=options.test, classes=options.classes, most=options.samples, seed=options.seed
        )
        with _topology_when_done(options, stages=len(cuts) + 1), replaced_when_done(out) as folder:
            write_bundle(folder, network, cuts, samples, name=options.name, tell=tell)
    tell(f"written to {out}", 1.0)
    return load_bundle(out.absolute())


@contextmanager
def _topology_when_done(options: SplitOptions, *, stages: int) -> Iterator[None]:
    """The topology file is there when the block ends; that it can be written and read again shows before."""
    file = options.topology
    if file is None:
        yield
        return
    text = line_topology(stages, options.folder, file)
    with written_when_done(file, text, remedy="choose another with --topology") as draft:
        load_topology(draft)
        yield


def _check_free(out: Path, options: SplitOptions) -> None:
    """Nothing that is there is lost: a bundle is replaced only where that was asked for, anything else never."""
    if options.topology is not None and options.topology.suffix != ".yaml":
        raise ConfigError(f"--topology: found {options.topology}, expected a file that ends in .yaml; name it so")
    there = [path for path in (out, options.topology) if path is not None and path.exists()]
    if there and not options.replace:
        raise ConfigError(
            f"{there[0]}: found it there already, expected a new one; choose another (--out, --topology) or add --replace"
        )
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(f"--out: found {out}, which is no bundle, expected a bundle to replace or nothing; choose another")
    read = (
        Path(options.model.rpartition(":")[0] or options.model),
        Path(options.model),
        options.weights,
        options.data,
        options.test,
        options.classes,
    )
    for path in read:
        if path is not None and path.exists() and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"--out: found that {path} lies in {out}, expected another folder, as that is replaced; choose one")
