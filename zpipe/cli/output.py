"""Showing a report and writing it down."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.report import RunLog


def check_writable(*files: Path | None) -> None:
    """Before the run: it would be a pity to find out after it."""
    given = [file for file in files if file is not None]
    for file in given:
        _check_writable(file)
    if len({file.resolve() for file in given}) < len(given):
        raise ConfigError(f"{given[0]}: found the same file twice, expected one for each; choose another")


def _check_writable(file: Path) -> None:
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{file}: found no folder {folder}, expected one to write into; make it first")
    there = file.exists()
    try:
        file.open("a").close()
        if not there:
            file.unlink()
    except OSError as exc:
        raise ConfigError(
            f"{file}: found that it cannot be written ({exc.strerror}), expected a file to write; choose another"
        ) from exc


def check_folder(folder: Path) -> None:
    """The same for a folder of files; where there is none it is made."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if made:
            folder.rmdir()
    except OSError as exc:
        raise ConfigError(
            f"{folder}: found that it cannot be written ({exc.strerror}), expected a folder to write into; choose another"
        ) from exc


def write_text(file: Path, text: str) -> None:
    """Writes it, or says in one line why not."""
    with _told(file):
        file.write_text(text, encoding="utf-8")


def write_secret(file: Path, text: str) -> None:
    """The same where nobody else may read it, at no moment; whoever could read the file that was there cannot any more."""
    with _told(file):
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(text)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """A disk that is full after all is one line, and no mistake of ours."""
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"{file}: found that it cannot be written ({exc.strerror}), expected room there; choose another") from exc


def show_report(
    report: dict[str, Any], samples: RunLog, *, json_file: Path | None, samples_file: Path | None, html_file: Path | None
) -> None:
    """Prints a run's report, writes the files asked for, and ends with 1 when the promise was broken."""
    from rich.console import Console

    from zpipe.report import render

    Console().print(render(report), crop=False)
    if json_file is not None:
        write_text(json_file, json.dumps(report, indent=1) + "\n")
    if samples_file is not None:
        with _told(samples_file):
            samples.samples_jsonl(samples_file)
    _write_page([report], html_file)
    _keep_promise([report])


def show_comparison(reports: list[dict[str, Any]], *, json_file: Path | None, html_file: Path | None) -> None:
    """Prints several runs side by side, writes the file asked for, and ends with 1 when one of them broke the promise."""
    from rich.console import Console

    from zpipe.report import comparison, render_comparison

    document = comparison(reports)
    Console().print(render_comparison(document), crop=False)
    if json_file is not None:
        write_text(json_file, json.dumps(document, indent=1) + "\n")
    _write_page(reports, html_file)
    _keep_promise(reports)


def _write_page(reports: list[dict[str, Any]], html_file: Path | None) -> None:
    if html_file is not None:
        from zpipe.report.page import render_page

        made_at = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        write_text(html_file, render_page(reports, command=shlex.join(["zpipe", *sys.argv[1:]]), made_at=made_at))


def show_suite(found: dict[str, Any], *, html_file: Path, json_file: Path) -> None:
    """Writes an evaluation's page and figures, prints its claims, and ends with 1 when a run broke the promise."""
    from rich.console import Console

    from zpipe.bench.suites import render_suite
    from zpipe.bench.suites.terminal import render_claims

    write_text(json_file, json.dumps(found, indent=1) + "\n")
    write_text(html_file, render_suite(found))
    console = Console()
    console.print(render_claims(found))
    console.print(f"{html_file} and {json_file} written", highlight=False)
    if found["broken"]:
        raise SystemExit(1)


def _keep_promise(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        counts = report["counts"]
        if counts["lost"] or counts["duplicate"] or counts["hung"] or report["strangers"]:
            raise SystemExit(1)
