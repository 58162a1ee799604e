"""`zpipe split`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_file
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, FOLDER
from zpipe.cli.output import check_writable
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.split import Listing, SplitOptions

PATH = click.Path(path_type=Path)
DTYPES = ("float32", "float16", "uint8", "int32", "int64")


@cli.command(epilog=example("zpipe split model.onnx --stages 4 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"))
@click.argument("model", shell_complete=complete_file)
@click.option("--list", "only_list", is_flag=True, help="Show where it may be cut, and write nothing.")
@click.option("--out", type=FOLDER, help="The bundle's folder; ./engines/MODEL if not given.")
@click.option("--topology", type=FILE, help="Also write a line of nodes for it here, one stage each.  [default: MODEL.yaml]")
@click.option("--stages", type=click.IntRange(1), help="How many, of equal cost.  [default: 4]")
@click.option("--cut", "cuts", metavar="TENSOR[,TENSOR]", multiple=True, help="Cut here instead; once for each cut.")
@click.option("--devices", metavar="FILE", help="Cut for a line of these devices instead (see `zpipe plan`).")
@click.option(
    "--crossing",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Also cut where so many tensors cross; all go in one frame.",
)
@click.option("--output", metavar="NAME", help="Which output is the answer, if there are several.")
@click.option("--mean", metavar="R,G,B", help="Stage 0 is to take bytes and compute (x / 255 - mean) / std.")
@click.option("--std", metavar="R,G,B", help="See --mean.")
@click.option("--weights", type=FILE, help="Of a torch model: its state dict.")
@click.option("--example-shape", metavar="C,H,W", help="One sample's shape, for a torch model or axes that the file leaves open.")
@click.option("--example-dtype", type=click.Choice(DTYPES), help="One sample's type, for a torch model.  [default: float32]")
@click.option(
    "--data",
    type=PATH,
    help="Labelled samples: a folder with one folder per class, an .npz (images, labels), CIFAR-10's folder. Half calibrates, half "
    "tests. Without them the bundle gets made-up inputs.",
)
@click.option("--test", type=PATH, help="The same to test with, instead of half of --data.")
@click.option("--classes", type=FILE, help="Names of the classes, one a line, in the network's order.")
@click.option(
    "--samples", type=click.IntRange(2), default=1000, show_default=True, help="Most samples to calibrate and to test with."
)
@click.option("--replace", is_flag=True, help="Replace the bundle and the topology file if they are there.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of made-up inputs.")
def split(model: str, only_list: bool, **options: Any) -> None:
    """Cut a network of your own into stages and write the bundle (needs `pip install 'zpipe[split]'`).

    MODEL is an ONNX file, or a torch module as package.module:factory or file.py:factory (needs the extra `train`, too).
    """
    from zpipe.split import list_cuts, split_model

    found = _options(model, **options)
    if only_list:
        with progress_shown() as progress:
            listing = list_cuts(found, progress=progress)
        _show(found, listing)
        return
    check_writable(found.topology)
    with progress_shown() as progress:
        bundle = split_model(found, progress=progress)
    _tell(found, bundle)


def _options(model: str, *, stages: int | None, cuts: tuple[str, ...], devices: str | None, **options: Any) -> SplitOptions:
    from zpipe.split import SplitOptions

    chosen = [name for name, value in (("--stages", stages), ("--cut", cuts), ("--devices", devices)) if value]
    if len(chosen) > 1:
        raise ConfigError(f"{', '.join(chosen)}: found {len(chosen)} ways to choose cuts, expected one; leave the others out")
    for name in ("mean", "std"):
        options[name] = _numbers(f"--{name}", options[name])
    options["example_shape"] = _shape(options["example_shape"])
    found = SplitOptions(model, cuts=cuts, stages=stages or 4, devices=devices, **options)
    return found if found.topology is not None else SplitOptions(**{**_fields(found), "topology": Path(f"{found.stem}.yaml")})


def _fields(options: SplitOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__slots__}


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option}: found {text!r}, expected numbers, such as 0.485,0.456,0.406") from None


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--example-shape: found {text!r}, expected sizes above 0 without the batch, such as 3,32,32")
    return tuple(int(part) for part in parts)


# ---- shown -------------------------------------------------------------------------------------


def _show(options: SplitOptions, listing: Listing) -> None:
    click.echo(f"{options.model}: {_millions(listing.macs)} multiply-adds per sample, {listing.input_bytes:,} bytes of input")
    if not listing.cuts:
        few = f"at most {options.crossing} tensors carry" if options.crossing > 1 else "one tensor carries"
        more = f"let more cross: --crossing {listing.crossing}" if listing.crossing else "it can only run whole: --stages 1"
        raise ConfigError(f"{options.model}: found no place where {few} everything, expected one to cut at; {more}")
    rows = [
        (cut.name, f"{cut.bytes:,}", _millions(cut.macs_before), _millions(cut.macs_after), _share(cut)) for cut in listing.cuts
    ]
    header = ("cut after", "bytes", "before", "after", "before %")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        click.echo(
            "  ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    click.echo(
        f"{len(rows)} places, bytes of one sample that crosses, multiply-adds on either side"
        + (f"; {listing.others} more with nothing to multiply between them and these" if listing.others else "")
    )
    click.echo(
        f"cut: zpipe split {shlex.quote(options.model)} --cut {shlex.quote(listing.cuts[len(rows) // 2].name)}, or --stages N"
    )


def _share(cut: Any) -> str:
    whole = cut.macs_before + cut.macs_after
    return f"{100 * cut.macs_before / whole:.0f}" if whole else "-"


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.2f} M"


def _tell(options: SplitOptions, bundle: Bundle) -> None:
    from zpipe.split import split_record

    out = options.folder
    costs = ", ".join(_millions(stage.macs) for stage in bundle.stages)
    count = "1 stage" if len(bundle.stages) == 1 else f"{len(bundle.stages)} stages"
    record = split_record(bundle)
    half = ", as it computes in half precision" if record.half else ""
    click.echo(
        f"{out}: {count} of {costs} multiply-adds; answers within {record.parity_error:.1g} of the whole network's "
        f"({record.parity_limit:g} allowed{half})"
    )
    if record.answer:
        click.echo(f"answer: {record.answer}")
    if bundle.evaluation_generated:
        click.echo("its evaluation set is made up: give labelled samples with --data to see an accuracy")
    else:
        metrics = bundle.default_point.test
        click.echo(f"{100 * metrics.accuracy:.1f} % on {bundle.evaluation_samples:,} test samples")
    click.echo(f"try it: zpipe bench --topology {shlex.quote(str(options.topology))}")
    data = "DATA" if options.data is None else shlex.quote(str(options.data))
    exits = shlex.quote(f"{out}-exits")
    if len(bundle.stages) > 1:
        click.echo(f"let easy samples leave early: zpipe heads --bundle {shlex.quote(str(out))} --data {data} --out {exits}")
    if options.devices is not None:
        click.echo(f"place it: zpipe plan --devices {shlex.quote(options.devices)} --bundle {shlex.quote(str(out))}")
