"""Headless Chromium for tests of pages: screenshots and measurements without touching the user's profile."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="not run: no chromium (apt-get install chromium)")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
)


def framed(page: str, width: int, height: int, folder: Path) -> Path:
    """A file that shows ``page`` in a frame of exactly that width; windows themselves cannot be that narrow."""
    probe = """<script>onload=()=>{const f=document.querySelector('iframe'),d=f.contentDocument.documentElement;
    const w=[...d.querySelectorAll('*')].filter(e=>!e.parentElement?.closest('.frame')
    &&e.getBoundingClientRect().right>f.clientWidth+1);
    document.title=JSON.stringify({scroll:d.scrollWidth,client:f.clientWidth,height:d.scrollHeight,
    wide:w.slice(0,5).map(e=>e.tagName+'.'+(e.getAttribute('class')||'')),scripts:d.querySelectorAll('script').length,
    outside:[...d.querySelectorAll('[src],[href]')].map(e=>e.getAttribute('src')||e.getAttribute('href')),
    heading:d.querySelector('h1')?.textContent})}</script>"""
    frame = f'<iframe srcdoc="{html.escape(page)}" style="border:0;width:{width}px;height:{height}px"></iframe>'
    path = folder / f"frame-{width}.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title></title><body style='margin:0'>{frame}{probe}",
        encoding="utf-8",
    )
    return path


def measure(page: str, width: int, folder: Path) -> str:
    """The JSON text that the probe of :func:`framed` found out about the page at that width."""
    shown = _chromium(folder, "--dump-dom", framed(page, width, 4000, folder).as_uri())
    found = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert found is not None, shown[:500]
    return html.unescape(found[1])


def screenshot(
    page: str, out: Path, *, width: int = 1100, height: int = 1600, theme: Literal["light", "dark"] = "light"
) -> Path:
    """Draw the page; ``theme`` is what the browser says the reader prefers."""
    out.parent.mkdir(parents=True, exist_ok=True)
    source = framed(page, width, height, out.parent) if width < 500 else out.parent / "page.html"
    if width >= 500:
        source.write_text(page, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={int(theme == 'light')}"
    size = f"--window-size={max(width, 500)},{height}"
    _chromium(out.parent, scheme, size, f"--screenshot={out}", source.as_uri())
    return out


def to_pdf(page: str, folder: Path) -> bytes:
    """The page as the browser would print it."""
    source = folder / "print.html"
    source.write_text(page, encoding="utf-8")
    _chromium(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}", source.as_uri())
    return (folder / "page.pdf").read_bytes()


def _chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    run = subprocess.run(
        [CHROMIUM, *_FLAGS, profile, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout
