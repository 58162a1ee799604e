"""Writing a bundle: the manifest with its digests, and a folder that appears only when it is whole."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from zpipe.bundle.files import MANIFEST, file_digest


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of the bundle in `folder` and take the digests of all its files anew."""
    plain = {key: value for key, value in manifest.items() if key != "digests"}
    digests = {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != MANIFEST}
    text = json.dumps({**plain, "digests": digests}, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def extend_manifest(folder: Path, keys: Mapping[str, Any]) -> None:
    """Add keys to the manifest of the bundle in `folder`, or replace them, and take the digests of all its files anew."""
    save_manifest(folder, {**json.loads((folder / MANIFEST).read_text(encoding="utf-8")), **keys})


@contextmanager
def replaced_when_done(out: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `out` once the block ends; when it raises, `out` stays as it was.

    SIGTERM in the block ends the process as an exception would (code 143), so that the new folder goes; in the last step both it
    and Ctrl-C wait.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _sigterm_raises(), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder
        # What was there goes with the scratch folder, and only once the new one is whole.
        with _signals_wait():
            if out.exists():
                out.rename(Path(scratch) / "replaced")
            folder.rename(out)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Where nobody else answers SIGTERM, and Python lets one."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _signals_wait() -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
