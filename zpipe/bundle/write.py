"""Writing a bundle: the manifest with its digests, and a folder that appears only when it is whole."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from zpipe.bundle.files import MANIFEST, file_digest
from zpipe.errors import ConfigError, said

#: What a disk says when it is full, broken or not to be written: nothing of a file that is read.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


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
def replaced_when_done(out: Path, *, remedy: str = "choose another with --out") -> Iterator[Path]:
    """A new empty folder that takes the place of `out` once the block ends; when it raises, `out` stays as it was.

    SIGTERM in the block ends the process as an exception would (code 143), so that the new folder goes; in the last step both it
    and Ctrl-C wait.

    Args:
        out: the folder.
        remedy: what to do when it cannot be written, for the message.

    Raises:
        ConfigError: it cannot be written, before the block or in it; one line. Other errors of the block pass through.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _unwritable(out, exc, remedy) from exc
    with _sigterm_raises(), _made_beside(out, remedy) as scratch:
        folder = Path(scratch) / out.name
        try:
            folder.mkdir()
            yield folder
            # What was there goes with the scratch folder, and only once the new one is whole.
            with _signals_wait():
                if out.exists():
                    out.rename(Path(scratch) / "replaced")
                folder.rename(out)
        except OSError as exc:
            own = isinstance(exc.filename, str) and (exc.filename.startswith(scratch) or Path(exc.filename) == out)
            # What copies a whole folder says nothing but that.
            if own or exc.errno in _DISK or isinstance(exc, shutil.Error):
                raise _unwritable(out, exc, remedy) from exc
            raise


@contextmanager
def written_when_done(file: Path, text: str, *, remedy: str) -> Iterator[Path]:
    """The same for one file: it lies beside its place, at the path that is given, until the block ends.

    Args:
        file: of text, UTF-8; its folder is there.
        text: all of it.
        remedy: as above.

    Raises:
        ConfigError: it cannot be written; one line, before the block.
    """
    with _sigterm_raises(), _made_beside(file, remedy) as scratch:
        draft = Path(scratch) / file.name
        try:
            draft.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise _unwritable(file, exc, remedy) from exc
        yield draft
        draft.replace(file)


def _made_beside(out: Path, remedy: str) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
    except OSError as exc:
        raise _unwritable(out, exc, remedy) from exc


def _unwritable(out: Path, exc: OSError, remedy: str) -> ConfigError:
    return ConfigError(
        f"{out}: found that it cannot be written ({exc.strerror or said(exc)}), expected a folder of yours with room; {remedy}"
    )


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


# ---- before ------------------------------------------------------------------------------------


def check_free(out: Path, *, replace: bool, read: Iterable[Path | None] = ()) -> None:
    """Nothing that is there is lost: a bundle is replaced only where that was asked for, anything else but an empty folder never.

    Args:
        out: where the bundle goes.
        replace: whether one that is there may go.
        read: what it is made from, and may not lie in `out`.

    Raises:
        ConfigError: something is there.
    """
    try:
        bundle = (out / MANIFEST).is_file()
        other = not bundle and (out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))))
    except OSError as exc:
        raise ConfigError(f"--out: found {out}, which cannot be read ({exc.strerror}), expected a free name; choose one") from exc
    if bundle and not replace:
        raise ConfigError(f"--out: found bundle {out} there already, expected a free name; choose another or add --replace")
    if other:
        raise ConfigError(f"--out: found {out}, which is no bundle, expected a bundle to replace or nothing; choose another")
    for path in read:
        if bundle and path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"--out: found that {path} lies in {out}, expected another folder, as that is replaced; choose one")
