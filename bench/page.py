"""The report's page, made from a real run and photographed: on a desk and, dark, on a phone.

    python -m bench.page        writes bench/results/line4.html and line4.png

The picture needs chromium and Pillow (`zpipe[images]`); without a browser the page is written all the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path("bench/results")
COMMAND = ("bench", "--topology", "line4.yaml", "--duration", "15", "--html", str(RESULTS / "line4.html"))
#: Pixels: widths of the desk's and the phone's window, their height, and what is left between them.
DESK, PHONE, HEIGHT, GAP = 1200, 390, 1560, 24
#: Most colours of the picture.
COLOURS = 256


def main() -> None:
    subprocess.run([sys.executable, "-m", "zpipe", *COMMAND], check=True)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("found no browser, expected one to photograph the page; install chromium")
    photograph(browser, RESULTS / "line4.html", RESULTS / "line4.png")


def photograph(browser: str, page: Path, to: Path) -> None:
    """Both pictures side by side."""
    from PIL import Image

    both = Image.new("RGB", (DESK + GAP + PHONE, HEIGHT), "#8a949e")
    for left, width, dark in ((0, DESK, False), (DESK + GAP, PHONE, True)):
        with tempfile.TemporaryDirectory() as folder:
            both.paste(
                Image.open(_shot(browser, page, Path(folder), width=width, dark=dark)).convert("RGB").crop((0, 0, width, HEIGHT)),
                (left, 0),
            )
    # The most frequent colours as they are, others as the nearest of them: a third of the bytes, and colours keep apart.
    often = sorted(both.getcolors(1 << 24), reverse=True)[:COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, colour in often for value in colour])
    both.quantize(palette=palette, dither=Image.Dither.NONE).save(to, optimize=True)


def _shot(browser: str, page: Path, folder: Path, *, width: int, dark: bool) -> Path:
    # In a frame: a browser's own window is at least 500 pixels wide.
    frame = folder / "frame.html"
    shown = f'<iframe src="{page.absolute().as_uri()}" width="{width}" height="{HEIGHT}" style="border:0"></iframe>'
    frame.write_text(f'<!doctype html><body style="margin:0">{shown}', encoding="utf-8")
    wishes = ["--blink-settings=preferredColorScheme=0"] if dark else []
    size = f"--window-size={max(width, 600)},{HEIGHT}"
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
    command = [*common, *wishes, size, f"--screenshot={folder}/shot.png", frame.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder / "shot.png"


if __name__ == "__main__":
    main()
