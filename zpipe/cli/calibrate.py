"""`zpipe calibrate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_bundle, complete_topology
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, FOLDER
from zpipe.cli.output import check_folder, check_writable, write_text
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.datasets import Labelled
    from zpipe.topology import Topology

PATH = click.Path(path_type=Path)


@cli.command(epilog=example("zpipe calibrate --bundle digits-mobilenetv2 --plots plots"))
@click.option(
    "--bundle", shell_complete=complete_bundle, default="digits-mobilenetv2", show_default=True, help="A bundle's folder or name."
)
@click.option(
    "--variant",
    type=click.Choice(["none", "global", "per-exit"]),
    default="per-exit",
    show_default=True,
    help="The temperatures that the accuracy table is made with; the other two are shown beside it.",
)
@click.option(
    "--targets",
    metavar="A,B,...",
    help="Accuracies 0..1 to find thresholds for; with --write on top of the usual.  [default: 0.5 to 0.999]",
)
@click.option(
    "--rule",
    type=click.Choice(["low", "mean"]),
    default="low",
    show_default=True,
    help="What must reach a target on calibration data: the low end of the accuracy's 95 % interval, or the accuracy itself.",
)
@click.option(
    "--data",
    metavar="PATH|digits",
    help="Labelled images to calibrate with: a folder with one folder per class, an .npz (images, labels), CIFAR-10's folder. "
    "The bundle's own calibration split if not given.",
)
@click.option("--test", type=PATH, help="The same to test with, if the bundle has no evaluation set; half of --data if not given.")
@click.option(
    "--topology", shell_complete=complete_topology, help="Show missed deadlines for this topology: devices, bandwidths, latencies."
)
@click.option("--bandwidth", metavar="RATE", help="Of every link of it, such as '20 Mbit/s'.")
@click.option("--latency", metavar="TIME", help="Of every link of it, such as '5 ms'.")
@click.option("--device", default="raspberry-pi-4", show_default=True, help="Profile of its nodes that name none.")
@click.option("--outage-targets", metavar="A,B,...", default="0.8,0.9", show_default=True, help="Of outage and missed deadlines.")
@click.option("--window", type=click.IntRange(2, 10_000), default=32, show_default=True, help="Samples in a window of both.")
@click.option("--json", "json_file", type=FILE, help="Write all of it here.")
@click.option(
    "--plots", type=FOLDER, help="Write reliability.png, outage.png and, with --topology, missed.png here (extra `suite`)."
)
@click.option("--write", is_flag=True, help="Put temperatures and accuracy table into the bundle; its digest becomes another.")
def calibrate(
    data: str | None,
    targets: str | None,
    outage_targets: str,
    topology: str | None,
    bandwidth: str | None,
    latency: str | None,
    json_file: Path | None,
    plots: Path | None,
    **options: Any,
) -> None:
    """Fit the exits' temperatures, and find the thresholds that keep a target accuracy: chosen on calibration, shown on test."""
    from rich.console import Console

    from zpipe.calibrate.run import CalibrateOptions
    from zpipe.calibrate.run import calibrate as run
    from zpipe.calibrate.terminal import render

    if targets is not None:
        options["targets"] = _fractions("--targets", targets)
    if topology is None and (bandwidth or latency):
        raise ConfigError("--bandwidth and --latency are of a topology's links: found no --topology, expected one; add it")
    check_writable(json_file)
    if plots is not None:
        from zpipe.calibrate.plots import require_matplotlib

        check_folder(plots)
        require_matplotlib()
    plan = CalibrateOptions(
        **options,
        data=_data(data, options["bundle"]),
        outage_targets=_fractions("--outage-targets", outage_targets),
        topology=None if topology is None else _topology(topology, options["bundle"], bandwidth, latency),
    )
    with progress_shown() as progress:
        study = run(plan, progress=progress)
    Console().print(render(study.report))
    if json_file is not None:
        write_text(json_file, json.dumps(study.report, indent=1) + "\n")
    if plots is not None:
        from zpipe.calibrate.plots import write_plots

        for file in write_plots(study.report, plots):
            click.echo(f"{file} written")
    if plan.write:
        click.echo(f"written into bundle {study.report['bundle']}; every node must have the same files")


def _fractions(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values or not all(0.0 < value <= 1.0 and math.isfinite(value) for value in values):
        raise ConfigError(f"{option}: found {text!r}, expected accuracies above 0 and up to 1, such as 0.9,0.95")
    return values


def _data(text: str | None, bundle: str) -> Path | Labelled | None:
    """A path, or the calibration split of the digits, which is drawn anew."""
    if text != "digits" or Path(text).exists():
        return None if text is None else Path(text)
    from zpipe.bundle import load_bundle
    from zpipe.datasets import Labelled
    from zpipe.models.digits import digits_task

    found = load_bundle(bundle, verify=False)
    task = digits_task(found.image_size)
    if task.classes != found.classes:
        raise ConfigError(f"--data digits: found bundle {found.name} with other classes, expected 0 to 9; give other data")
    return Labelled("digits: scikit-learn load_digits, calibration split", task.classes, task.calibration)


def _topology(name: str, bundle: str, bandwidth: str | None, latency: str | None) -> Topology:
    from zpipe.topology import load_topology, override

    return override(load_topology(name), bundle=bundle, bandwidth=bandwidth, latency=latency)
