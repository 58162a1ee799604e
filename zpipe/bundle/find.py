"""Finding a bundle by path or name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zpipe.bundle.files import MANIFEST
from zpipe.bundle.manifest import parse, read_manifest, verify_files
from zpipe.bundle.spec import Bundle
from zpipe.errors import BundleError


def load_bundle(name_or_path: str | Path, *, beside: Path | None = None, verify: bool = True) -> Bundle:
    """Find a bundle by path or name, check it and read its manifest.

    Looked for in this order: as a path; beside the topology file (`beside`: the file or its folder) and in `../engines` from
    there; in `./engines`; in the installed package; in the `engines/` of a source checkout.

    Args:
        name_or_path: a bundle's folder, or its name.
        beside: the topology file that named the bundle, if one did.
        verify: hash every file (about 10 ms for the digits bundle). Without it only the manifest is checked.

    Raises:
        BundleError: not found (the places tried are listed), or something in it is wrong (file, key, found, expected).
    """
    folder = _find(Path(name_or_path), beside)
    manifest = read_manifest(folder / MANIFEST)
    bundle = parse(folder, manifest)
    if verify:
        verify_files(folder, manifest, bundle)
    return bundle


def bundle_folders() -> list[Path]:
    """Every bundle that its name alone finds from here, by name."""
    found: dict[str, Path] = {}
    for place in _places(Path("*"), None):
        for manifest in sorted(place.parent.glob(f"*/{MANIFEST}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return [found[name] for name in sorted(found)]


def _find(wanted: Path, beside: Path | None) -> Path:
    """The first place that holds a manifest."""
    places = list(dict.fromkeys(_places(wanted, beside)))
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise BundleError(
        f"bundle {str(wanted)!r}: found no {MANIFEST}, expected one in one of: {tried}; "
        f"give a path to a bundle's folder, or make one with `zpipe train` or `zpipe split`"
    )


def _places(wanted: Path, beside: Path | None) -> Iterator[Path]:
    if wanted.name == MANIFEST:
        wanted = wanted.parent
    yield wanted
    if wanted.is_absolute():
        return
    if beside is not None:
        folder = beside.parent if beside.is_file() else beside
        yield folder / wanted
        yield Path(os.path.normpath(folder / ".." / "engines" / wanted))
    yield Path("engines") / wanted
    package = Path(__file__).resolve().parent.parent
    yield package / "data" / "engines" / wanted
    yield package.parent / "engines" / wanted
