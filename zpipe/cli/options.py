"""What several commands share: options, their types, and checks of what they name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from zpipe.cli.completion import complete_bundle, complete_source, complete_topology
from zpipe.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

TOPOLOGY = click.option(
    "--topology",
    default="line4.yaml",
    show_default=True,
    shell_complete=complete_topology,
    help="A topology file, or the name of one that comes with zpipe.",
)


def _once(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value, where it is given; click alone would take the last of several."""
    if len(values) > 1:
        raise ConfigError(f"{parameter.opts[0]}: found {' and '.join(values)}, expected one: a program is one source; name one")
    return values[0] if values else None


def source_option(said: str) -> Callable[[Command], Command]:
    """`--source` of a command that is one of several sources; `said` is its help."""
    return click.option("--source", metavar="NAME", multiple=True, callback=_once, shell_complete=complete_source, help=said)


INSECURE = click.option("--insecure", is_flag=True, help="Listen without keys where a network can reach it: anybody may connect.")
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class Seconds(click.FloatRange):
    """Seconds above 0; click's own range lets a NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return found


class Accuracy(Seconds):
    """A fraction above 0, up to 1."""


SECONDS = Seconds(0, 1e6, min_open=True)


#: What `zpipe bench` and `zpipe sim` have in common, in the order of their help.
_LOAD = (
    click.option(
        "--count", type=click.IntRange(1), help="Samples to offer; the evaluation set once if neither this nor --duration is given."
    ),
    click.option("--duration", type=SECONDS, help="Seconds to offer samples for."),
    click.option(
        "--window", type=click.IntRange(1), default=32, show_default=True, help="Samples under way at once in the closed loop."
    ),
    click.option(
        "--rate",
        metavar="HZ|max",
        help="Arrivals at this rate instead, of all sources together: each has an equal share, whatever the topology says of its "
        "own rate; `max`: as many as admission lets in.",
    ),
    click.option(
        "--source-rate",
        "rates",
        multiple=True,
        metavar="NAME=HZ",
        shell_complete=complete_source,
        help="Arrivals at one of several sources, by name or rank, once for each; the others have what the topology says.",
    ),
    click.option(
        "--arrivals",
        metavar="poisson|constant|FILE",
        default="poisson",
        show_default=True,
        help="When samples come: at --rate HZ, or at the times in a file, one in seconds a line.",
    ),
    click.option("--policy", "exit_point", metavar="POINT", help="An operating point of the bundle, or `no-exit`."),
    click.option(
        "--admission", type=click.Choice(["fixed", "mdi-rate", "mdi-threshold", "aimd"]), help="Instead of the topology's."
    ),
    click.option("--when-full", type=click.Choice(["block", "latest", "deadline"]), help="Instead of the topology's."),
    click.option(
        "--redundancy",
        type=click.Choice(["failover", "hedged", "all"]),
        help="Of a bundle of students, how many hosts of each get a sample, instead of the topology's.",
    ),
    click.option("--max-batch", type=click.IntRange(1), help="Most tasks in one batch, at every node."),
    click.option("--bundle", shell_complete=complete_bundle, help="A bundle's folder or name, instead of the topology's."),
    click.option("--deadline", type=SECONDS, help="Seconds a sample has, instead of the topology's."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the order of samples, arrivals and all dice."),
    click.option("--warm-up", type=click.IntRange(0), default=200, show_default=True, help="Samples before the measured ones."),
    click.option("--accuracy", type=Accuracy(0, 1, min_open=True), help="What sources want, such as 0.95: sets thresholds."),
    click.option("--severity", metavar="LEVELS", help="Only evaluation samples of these severities of distortion, such as 3,4."),
    click.option(
        "--offload",
        type=click.Choice(["local", "cheapest", "ddi", "mdi", "pa-mdi", "ar-mdi", "ms-mdi", "fifo"]),
        help="Strategy instead of the topology's, with the service order that comes with it: priority with pa-mdi, else fifo.",
    ),
    click.option(
        "--compare",
        metavar="NAMES",
        help="Run it as these, too: baselines, no-exit,local,ddi,mdi-static, and strategies as of --offload, such as fifo,ar-mdi.",
    ),
    click.option("--json", "json_file", type=FILE, help="Write the report here."),
    click.option("--html", "html_file", type=FILE, help="Write it here as a page, with figures and a drawing of the topology."),
    click.option("--samples", "samples_file", type=FILE, help="Write one JSON line per sample here."),
)


def load_options(command: Command) -> Command:
    """Gives a command the options of `_LOAD`."""
    for option in reversed(_LOAD):
        command = option(command)
    return command


def parse_compare(text: str | None, samples_file: Path | None) -> list[str]:
    """The baselines named; none without `--compare`."""
    if text is None:
        return []
    if samples_file is not None:
        raise ConfigError("--samples: found it beside --compare, expected one of the two: it is about a single run")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--compare: found {text!r}, expected names of baselines or strategies, such as no-exit,fifo")
    return names


def parse_load(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `load_options` with `rate` as a number, `rate_hz`; a rate without an end offers for 10 seconds.

    `rates` becomes {source: samples per second}.

    Raises:
        ConfigError: a value that cannot be, or two that exclude each other.
    """
    if options["exit_point"] is not None and options["accuracy"] is not None:
        raise ConfigError(
            f"--accuracy: found {options['accuracy']:g} beside --policy {options['exit_point']}, expected one of the two: "
            "an operating point has its own thresholds; leave one out"
        )
    severity = options.pop("severity")
    options["severity"] = None if severity is None else _levels(severity)
    rate = options.pop("rate")
    options["rate_hz"] = None if rate is None else _rate(rate)
    options["rates"] = dict(_source_rates(options["rates"]))
    if rate not in (None, "max") and options["count"] is None and options["duration"] is None:
        from zpipe.load import RATED_SECONDS

        options["duration"] = RATED_SECONDS
    return options


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--severity: found {text!r}, expected whole numbers, such as 4 or 3,4") from None


def _source_rates(texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """(source, its samples per second) of each `NAME=HZ`."""
    seen: set[str] = set()
    for text in texts:
        name, equals, rate = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--source-rate: found {text!r}, expected a source and its samples per second, such as camera=5")
        if name in seen:
            raise ConfigError(f"--source-rate: found source {name} twice, expected each once")
        seen.add(name)
        yield name, _hertz(rate, f"--source-rate: found {text!r}")


def _rate(text: str) -> float:
    """Samples per second; `inf` for `max`: as many as admission lets in."""
    if text == "max":
        return math.inf
    return _hertz(text, f"--rate: found {text!r}", also=", or `max`")


def _hertz(text: str, found: str, *, also: str = "") -> float:
    """Within the bounds of a topology's `rate`."""
    from zpipe.topology import RATE_HZ

    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not RATE_HZ[0] <= rate <= RATE_HZ[1]:
        raise ConfigError(f"{found}, expected from {RATE_HZ[0]:g} to {RATE_HZ[1]:g} samples a second{also}")
    return rate
