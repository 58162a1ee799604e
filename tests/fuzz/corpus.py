"""Frames kept as files: `corpus/valid` holds a message of each kind, `corpus/broke` what once got past a check that was missing.

One frame a line in hex, lines with `#` say why it is here. After a change of the wire's layout:

    python -m tests.fuzz.corpus        writes corpus/valid anew, from tests/wire/samples.py
"""

from __future__ import annotations

from pathlib import Path

from tests.wire.samples import NOW, SAMPLES
from zpipe.wire import encode

CORPUS = Path(__file__).parent / "corpus"
Frames = list[bytes]


def samples() -> dict[str, Frames]:
    """{file name: frames} of one valid message of every kind, as `encode` makes them now."""
    return {
        name.replace(",", "").replace(" ", "-").lower(): [bytes(frame) for frame in encode(message, now=NOW)]
        for name, message in SAMPLES.items()
    }


def read(folder: str) -> dict[str, Frames]:
    """{file name: frames} of `valid` or `broke`."""
    return {path.stem: _frames(path) for path in sorted((CORPUS / folder).glob("*.hex"))}


def _frames(path: Path) -> Frames:
    lines = path.read_text(encoding="ascii").split("\n")[:-1]
    return [bytes.fromhex(line) for line in lines if not line.startswith("#")]


def write(folder: str, name: str, frames: Frames, why: str) -> None:
    """Keeps frames; an empty one is an empty line."""
    path = CORPUS / folder / f"{name}.hex"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {why}", *[frame.hex() for frame in frames]]) + "\n", encoding="ascii")


def main() -> None:
    """Writes `valid` anew."""
    for path in (CORPUS / "valid").glob("*.hex"):
        path.unlink()
    for name, frames in samples().items():
        write("valid", name, frames, "a valid message of tests/wire/samples.py")


if __name__ == "__main__":
    main()
