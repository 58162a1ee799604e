"""Writing a bundle: the manifest with its digests, and a folder that appears only when it is whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
    """A new empty folder that takes the place of `out` once the block ends; when it raises, `out` stays as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder
        # What was there goes with the scratch folder, and only once the new one is whole.
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        folder.rename(out)
