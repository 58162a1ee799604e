"""`zpipe infer`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_bundle, complete_file
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, FOLDER, INSECURE, SECONDS, TOPOLOGY, source_option
from zpipe.cli.running import Interrupted, progress_shown, run_interruptible
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.infer import Answer, Plan, RawFormat, Results, Skipped, Tally
    from zpipe.infer.labelled import Folder, Window
    from zpipe.metrics import MetricsServer

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
#: Of one raw frame, which is held as a whole and more than once: six times an 8K picture.
MOST_FRAME_BYTES = 600_000_000


@cli.command(epilog=example("zpipe infer --fit ink photo.jpg"))
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", shell_complete=complete_file)
@TOPOLOGY
@click.option("--attach", is_flag=True, help="The other nodes run already (`zpipe node`); be their source.")
@source_option("Which of several sources to be, by name or rank.")
@INSECURE
@click.option("--bundle", shell_complete=complete_bundle, help="A bundle's folder or name, instead of the topology's.")
@click.option("--executor", help="What runs the stages at every node: `auto`, `trt`, `torch-cuda`, `onnx`, or MODULE:CLASS.")
@click.option("--device", help="Of nodes whose topology names none, such as cuda:1/fp16.")
@click.option("--policy", "exit_point", metavar="POINT", help="An operating point of the bundle, or `no-exit`.")
@click.option("--deadline", type=SECONDS, help="Seconds an input has, instead of the topology's.")
@click.option(
    "--when-full",
    type=click.Choice(["block", "latest", "deadline"]),
    help="When the network is busy: wait, drop the oldest waiting frame, or drop what would be late.  [files: block, live: latest]",
)
@click.option(
    "--fit",
    type=click.Choice(["stretch", "crop", "ink"]),
    default="stretch",
    show_default=True,
    help="What becomes of a picture: stretched to the network's square; its middle square; or the one character written in it, "
    "found and drawn as the digits bundles know it.",
)
@click.option("--size", metavar="WxH", help="Of the raw frames on standard input, such as 640x480.")
@click.option(
    "--pixel", type=click.Choice(["rgb24", "bgr24", "gray8"]), default="rgb24", show_default=True, help="Of these frames."
)
@click.option("--count", type=click.IntRange(1), help="End after so many inputs.")
@click.option("--out", "out_file", type=FILE, help="Write the JSON lines here instead of standard output.")
@click.option("--resume", is_flag=True, help="With --out: go on where an earlier run ended; what is there is not done again.")
@click.option("--save", "save_folder", type=FOLDER, help="Write pictures with their labels into this folder.")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Tell Prometheus of this source here, as `zpipe node --metrics` does of a node: rates, latencies, outcomes.",
)
@click.option("--show", is_flag=True, help="Show pictures with their labels in a window; q ends it.")
def infer(
    *,
    inputs: tuple[str, ...],
    size: str | None,
    pixel: str,
    out_file: Path | None,
    resume: bool,
    save_folder: Path | None,
    metrics: str | None,
    show: bool,
    **options: Any,
) -> None:
    """Classify INPUT...: pictures, folders of them, videos, .npz files; `camera:0`; `-` for raw frames on standard input.

    One JSON line each, in the order of the inputs. What cannot be read is said on standard error and skipped.
    Exit code 1: something was skipped, or ended without a result (frames that a busy network drops do not count).

    Example: zpipe infer --fit ink photo.jpg
    """
    from zpipe.infer import InferOptions, Results, prepare_inference

    # What Pillow has to say of a damaged picture stands in our line about it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if resume and out_file is None:
        raise ConfigError("--resume: found it without --out, expected --out FILE: the file of the run to go on with")
    raw = None if size is None else _raw(size, pixel)
    plan = prepare_inference(InferOptions(inputs=inputs, raw=raw, drawn=show or save_folder is not None, **options))
    if resume and plan.live:
        raise ConfigError(f"--resume: found it with {inputs[0]}, expected files: what is live does not come again")
    telling = None
    if metrics:
        from zpipe.metrics import MetricsServer

        telling = MetricsServer(plan.pipeline, metrics)
    with ExitStack() as stack:
        results = stack.enter_context(Results(out_file, resume=resume)) if out_file is not None else None
        _Run(plan, results, *_drawing(save_folder, show=show), telling).run()


def _raw(size: str, pixel: str) -> RawFormat:
    from zpipe.infer import RawFormat

    found = _SIZE.fullmatch(size)
    if found is None:
        raise ConfigError(f"--size: found {size!r}, expected width and height in pixels, such as 640x480")
    raw = RawFormat(int(found[1]), int(found[2]), pixel)
    if raw.frame_bytes > MOST_FRAME_BYTES:
        gigabytes, most = raw.frame_bytes / 1e9, MOST_FRAME_BYTES / 1e9
        raise ConfigError(f"--size: found {size!r}, {gigabytes:.1f} GB a frame, expected at most {most:.1f} GB; correct it")
    return raw


def _drawing(save_folder: Path | None, *, show: bool) -> tuple[Folder | None, Window | None]:
    from zpipe.infer.labelled import Folder, Window

    window = Window() if show else None
    return (None if save_folder is None else Folder(save_folder)), window


class _Run:
    """One run and what it prints."""

    def __init__(
        self, plan: Plan, results: Results | None, folder: Folder | None, window: Window | None, telling: MetricsServer | None
    ) -> None:
        from zpipe.infer import Tally

        self._plan = plan
        self._results = results
        self._folder = folder
        self._window = window
        self._telling = telling
        self._tally = Tally()
        self._number = 0 if results is None else results.count

    def run(self) -> None:
        """Ends with 1 when it fell short."""
        began, ended = time.monotonic(), True
        earlier = None if self._results is None else self._results.holds
        with progress_shown(shown=self._results is not None or not sys.stdout.isatty()) as progress:
            try:
                run_interruptible(self._classify(progress, lambda name, frame: earlier is None or not earlier(name, frame)))
            except (Interrupted, KeyboardInterrupt):
                ended = self._plan.live
            except BrokenPipeError:
                # Whoever read our lines (`| head`) has enough; nothing may be flushed there at exit either.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self._window is not None:
            self._window.close()
        tally = self._tally
        if tally.answered != 1 or tally.fell_short or not ended:
            click.echo(_summary(tally, time.monotonic() - began, ended=ended, resumable=self._results is not None), err=True)
        if tally.fell_short or not ended:
            raise SystemExit(1)

    async def _classify(self, progress: Callable[[str, float], None], wanted: Callable[[str, int | None], bool]) -> None:
        from zpipe.infer import run_inference

        async with AsyncExitStack() as stack:
            if self._telling is not None:
                await stack.enter_async_context(self._telling)
                click.echo(f"tells Prometheus at http://{self._telling.address}/metrics", err=True)
            await run_inference(
                self._plan,
                answered=self._answered,
                skipped=self._skipped,
                progress=progress,
                tally=self._tally,
                wanted=wanted,
            )

    async def _answered(self, answer: Answer) -> bool:
        import asyncio

        from zpipe.infer import to_line

        line = to_line(answer)
        if self._results is not None:
            self._results.write(line)
        else:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()  # a robot at the other end of the pipe waits for it
        self._number += 1
        if self._folder is not None:
            await asyncio.to_thread(self._folder.save, answer, self._number)
        return self._window is None or self._window.show(answer)

    def _skipped(self, skipped: Skipped) -> None:
        click.echo(f"zpipe: skipped {' '.join(skipped.cause.split())}", err=True)


def _summary(tally: Tally, seconds: float, *, ended: bool, resumable: bool) -> str:
    results = tally.kinds["result"]
    parts = [f"{results} classified in {seconds:.1f} s"]
    parts += [f"{count} {kind}" for kind, count in tally.kinds.items() if count and kind != "result"]
    parts += [f"{tally.skipped} skipped"] if tally.skipped else []
    parts += [f"{tally.passed} done earlier"] if tally.passed else []
    if not ended:
        parts.append("stopped before the end" + ("; go on with --resume" if resumable else ""))
    return ", ".join(parts)
