"""The README's picture of the page is of the page as it is."""

import struct
import zlib

import screenshot


def png(width: int = 1, height: int = 1) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\0" * width) * height)
    return screenshot.MARK + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_picture_shows_the_page_as_it_is() -> None:
    picture = screenshot.PICTURE.read_bytes()
    assert screenshot.label(picture) == screenshot.fingerprint(), (
        "The page was changed after its picture was taken. Run: python tests/screenshot.py runs/demo"
    )
    width, height = struct.unpack(">II", dict(screenshot.chunks(picture))[b"IHDR"][:8])
    assert (width, height) == (1280, 1120)
    assert len(picture) < 400_000
    assert f"]({screenshot.PICTURE.relative_to(screenshot.ROOT)})" in (screenshot.ROOT / "README.md").read_text()


def test_a_picture_of_other_sources_is_found() -> None:
    assert screenshot.label(png()) is None
    assert screenshot.label(screenshot.labelled(png(), "other")) == "other"
    again = screenshot.labelled(png(2, 3), "x")
    assert dict(screenshot.chunks(again))[b"IHDR"] == dict(screenshot.chunks(png(2, 3)))[b"IHDR"]
    assert again.endswith(png()[-12:])
