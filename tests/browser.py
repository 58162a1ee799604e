"""Pages as a real browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Shown:
    """What a browser made of a page.

    Attributes:
        wide: {width of the screen: width of what is on it}, pixels.
        loaded: what the page fetched besides itself.
        console: what the browser complained of.
    """

    wide: dict[int, int]
    loaded: list[str]
    console: list[str]


#: Looks into frames from outside, so that a page that allows itself no script can be asked, too.
_ASK = """
<script>onload = () => {
  const frames = [...document.querySelectorAll('iframe')];
  const wide = frames.map(f => [f.width, f.contentDocument.documentElement.scrollWidth]);
  const loaded = frames.flatMap(f => f.contentWindow.performance.getEntriesByType('resource').map(e => e.name));
  document.body.dataset.found = JSON.stringify({wide, loaded});
}</script>
"""


def shown(page: str, folder: Path, *, widths: Sequence[int] = (360, 1280), opened: bool = True) -> Shown:
    """Shows a page on screens of these widths; `opened`: with all that can be opened open."""
    if opened:
        page = page.replace("<details", "<details open")
    (folder / "page.html").write_text(page, encoding="utf-8")
    frames = "".join(f'<iframe src="page.html" width="{width}" height="900"></iframe>' for width in widths)
    (folder / "frames.html").write_text(f"<!doctype html><body>{frames}{_ASK}", encoding="utf-8")
    ended = _run(folder, "--dump-dom", "--allow-file-access-from-files", "--enable-logging=stderr", "frames.html")
    (found,) = re.findall(r'data-found="([^"]*)"', ended.stdout)
    told = json.loads(unescape(found))
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return Shown({int(screen): wide for screen, wide in told["wide"]}, told["loaded"], console)


def photograph(page: str, folder: Path, *, dark: bool = False, size: tuple[int, int] = (1280, 1600)) -> Path:
    """A picture of the page."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    wishes = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(folder, "--hide-scrollbars", *wishes, f"--window-size={size[0]},{size[1]}", "--screenshot=page.png", "page.html")
    return folder / "page.png"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: install chromium to see the page rendered")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120)
