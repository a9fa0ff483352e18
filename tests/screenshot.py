"""Makes docs/page.png, the picture of the server's page in the README, from a finished run on MovieLens:

    python tests/screenshot.py runs/demo

It holds the fingerprint of the sources that it shows; tests/test_screenshot.py compares.
"""

import hashlib
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from browser import chromium, page_of, until
from server_process import serving

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "page.png"
SOURCES = [ROOT / "components" / name for name in ("_page.html", "_page.css", "_page.js", "_theme.py")]
KEY = b"page sources"
PICKED = ("toy story 1995", "matrix 1999", "godfather 1972")
MARK = b"\x89PNG\r\n\x1a\n"


def fingerprint() -> str:
    """Of all that decides how the page looks."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the chunks of a PNG."""
    assert picture.startswith(MARK)
    at = len(MARK)
    while at < len(picture):
        size, kind = struct.unpack(">I4s", picture[at : at + 8])
        yield kind, picture[at + 8 : at + 8 + size]
        at += size + 12


def labelled(picture: bytes, text: str) -> bytes:
    """The PNG with a text of ours behind its head."""
    found = list(chunks(picture))
    found.insert(1, (b"tEXt", KEY + b"\0" + text.encode()))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in found)
    return MARK + b"".join(parts)


def label(picture: bytes) -> str | None:
    """The text of ours in a PNG."""
    own = (content.partition(b"\0") for kind, content in chunks(picture) if kind == b"tEXt")
    return next((text.decode() for key, _, text in own if key == KEY), None)


def shoot(run: Path) -> bytes:
    """The page of a run's server after three films were picked."""
    with (
        serving(run) as server,
        chromium() as browser,
        page_of(browser, f"{server.url}/", (server.url, "data:"), 1280, False) as (page, _),
    ):
        until(page, "Number(document.documentElement.dataset.answers || 0) > 0")
        for number, words in enumerate(PICKED, 1):
            page.fill("#search", words)
            until(page, "document.querySelector('#found:not([hidden]) [role=option][aria-selected=true]') !== null")
            page.keyboard.press("Enter")
            until(page, f"document.querySelectorAll('#chips li').length === {number}")
        until(page, "document.querySelectorAll('#list .why').length > 0")
        page.locator("h1").click()  # the field is left
        page.wait_for_timeout(500)
        return page.screenshot(clip={"x": 0, "y": 0, "width": 1280, "height": 1120}, full_page=True)


if __name__ == "__main__":
    PICTURE.write_bytes(labelled(shoot(Path(sys.argv[1])), fingerprint()))
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")
