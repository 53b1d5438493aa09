"""Stored previews as a client gets them: pictures encoded anew within limits, text as text, none where unwanted."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.app import create_app
from service.engine import Engine
from service.preview_images import MOST_BYTES, UnshowableImageError, clean_png
from service.settings import Settings
from tests.index_factory import make_index

SECRET = "position-of-the-photographer"
PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(stream, format=kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E] = SECRET
    return found


def png_with_text() -> bytes:
    text = PngInfo()
    text.add_text("Comment", SECRET)
    text.add_itxt("Description", SECRET, zip=False)
    return encoded("PNG", pnginfo=text, exif=exif(), icc_profile=SECRET.encode())


def jpeg_with_exif() -> bytes:
    return encoded("JPEG", exif=exif(), comment=SECRET, icc_profile=SECRET.encode())


def webp_with_exif() -> bytes:
    return encoded("WEBP", exif=exif().tobytes(), xmp=SECRET.encode(), icc_profile=SECRET.encode(), lossless=True)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour that says it is much larger than its file."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = zlib.compress(b"\0" * min((width + 1) * height, 10**7), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [png_with_text, jpeg_with_exif, webp_with_exif])
def test_nothing_but_pixels_is_carried_over(make: Callable[[], bytes]):
    content = make()
    assert SECRET.encode() in content, "the case has no metadata"
    shown = clean_png(content + b"<script>behind the picture</script>")
    assert SECRET.encode() not in shown
    assert b"script" not in shown
    with Image.open(io.BytesIO(shown)) as image:
        image.load()
        assert (image.format, image.size, image.info) == ("PNG", (4, 6), {})
        if make is not jpeg_with_exif:
            assert np.array_equal(np.asarray(image), PIXELS)
    kinds = [shown[at + 4 : at + 8] for at in _chunks(shown)]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def _chunks(png: bytes) -> list[int]:
    places, at = [], 8
    while at < len(png):
        places.append(at)
        at += 12 + struct.unpack(">I", png[at : at + 4])[0]
    return places


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_pixels_looks_the_same(mode: str):
    image = Image.fromarray(PIXELS).convert(mode)
    shown = Image.open(io.BytesIO(clean_png(encoded("PNG", image))))
    assert np.array_equal(np.asarray(shown.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_transparency_of_a_palette_stays():
    image = Image.fromarray(PIXELS).convert("P")
    shown = Image.open(io.BytesIO(clean_png(encoded("PNG", image, transparency=0))))
    assert shown.mode == "RGBA"
    assert np.array_equal(np.asarray(shown)[..., 3] == 0, np.asarray(image) == 0)


def test_a_picture_that_lies_on_its_side_is_turned():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert Image.open(io.BytesIO(clean_png(encoded("JPEG", exif=turned)))).size == (6, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><script>alert(1)</script></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        encoded("GIF"),
        encoded("BMP"),
        encoded("TIFF"),
        encoded("PNG")[:45],
        encoded("JPEG")[:300],
        encoded("WEBP")[:40],
        bomb(2**14, 2**14),
        bomb(2**31 - 1, 2**31 - 1),
        bomb(3000, 2000),
        encoded("PNG") + b" " * MOST_BYTES,
    ],
    ids=lambda content: f"{content[:8]!r}-{len(content)}",
)
def test_what_is_no_picture_or_too_large_a_one_is_not_shown(content: bytes):
    with pytest.raises(UnshowableImageError):
        clean_png(content)


HOSTILE = "<html><script>alert(1)</script></html>"
PREVIEWS = [png_with_text(), HOSTILE, {"html": HOSTILE}, b"\x89PNG\r\n\x1a\n" + HOSTILE.encode(), None, png_with_text()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("previews")
    make_index(root, name="shown", num_rows=len(PREVIEWS), dim=4, previews=PREVIEWS)
    return root


def reach(settings: Settings) -> httpx.AsyncClient:
    app = create_app(settings, Engine.open(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


@pytest.mark.anyio
async def test_pictures_come_as_png_text_as_text_and_the_rest_not_at_all(root: Path):
    async with reach(Settings(index_root=root)) as http:
        answers = [await http.get(f"/v1/indexes/shown/examples/{row}/content") for row in range(len(PREVIEWS))]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 200]
        for row in (0, 5):
            assert answers[row].headers["content-type"] == "image/png"
            assert answers[row].content.startswith(b"\x89PNG")
            assert SECRET.encode() not in answers[row].content
        assert answers[1].headers["content-type"] == "text/plain; charset=utf-8"
        assert answers[1].text == HOSTILE
        assert answers[2].headers["content-type"] == "application/json"
        assert json.loads(answers[2].text) == {"html": HOSTILE}
        assert answers[3].json()["code"] == answers[4].json()["code"] == "no_content"
        assert "no PNG, JPEG or WebP" in answers[3].json()["detail"]
        for answer in answers:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "html" not in answer.headers["content-type"]


@pytest.mark.anyio
async def test_a_service_without_previews_shows_none(root: Path):
    settings = Settings(index_root=root, no_previews=True)
    async with reach(settings) as http:
        for split, rows in (("train", len(PREVIEWS)), ("query", 6)):
            page = (await http.get(f"/v1/indexes/shown/examples?split={split}")).json()["examples"]
            assert [example["content_type"] for example in page] == [None] * rows
            assert page[0]["id"] == f"{split}:0"
            for row in range(rows):
                path = f"/v1/indexes/shown/examples/{row}"
                assert (await http.get(f"{path}?split={split}")).json()["content_type"] is None
                hidden = await http.get(f"{path}/content?split={split}")
                assert (hidden.status_code, hidden.json()["code"]) == (404, "no_content")


@pytest.mark.anyio
async def test_an_index_without_previews_has_none_in_any_answer(tmp_path: Path):
    make_index(tmp_path, name="bare", num_rows=6, dim=4, previews=[None] * 6)
    async with reach(Settings(index_root=tmp_path)) as http:
        page = (await http.get("/v1/indexes/bare/examples")).json()["examples"]
        assert {example["content_type"] for example in page} == {None}
        assert (await http.get("/v1/indexes/bare/examples/0/content")).status_code == 404
