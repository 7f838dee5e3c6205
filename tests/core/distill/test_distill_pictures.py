"""Pictures as a person sees them: what Pillow's plain conversion to RGB would get wrong in silence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from clear_core.distill.inputs import Picture, checked_pictures, digest_of, folders_inside, sources_of
from clear_core.distill.pictures import PictureError, read_picture

Image = pytest.importorskip("PIL.Image")
ImageCms = pytest.importorskip("PIL.ImageCms")

GREEN, WHITE, RED = (0, 128, 0), (255, 255, 255), (255, 0, 0)


def encoded(image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits: int, colour: int, row: bytes, transparent: bytes = b"", side: int = 16, width: int = 16) -> bytes:
    """A PNG of equal rows, for depths that Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, side, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress((b"\0" + row) * side))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + data
        + chunk(b"IEND", b"")
    )


def seen(content: bytes) -> np.ndarray:
    image = read_picture(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(kind: str):
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 16))  # White on the left.
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees: what is left in the file is seen above.
    found = seen(encoded(image, kind, exif=exif))
    assert found.shape == (32, 16, 3)
    assert found[:12].mean() > 250 and found[20:].mean() < 5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P with bytes", "L with a tone", "RGB with a colour"])
def test_what_is_transparent_is_white(mode: str):
    image, options = Image.new("RGBA", (16, 16), (0, 0, 0, 0)), {}
    image.paste((0, 128, 0, 255), (0, 0, 8, 16))
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = Image.new("P", (16, 16), 1)
        image.putpalette([*GREEN, 0, 0, 0])
        image.paste(0, (0, 0, 8, 16))
        options = {"transparency": 1}
    elif mode == "P with bytes":
        image = image.quantize(4)
    elif mode == "L with a tone":
        image, options = Image.new("L", (16, 16), 7), {"transparency": 7}
        image.paste(75, (0, 0, 8, 16))
    elif mode == "RGB with a colour":
        image, options = image.convert("RGB"), {"transparency": (0, 0, 0)}
    found = seen(encoded(image, **options))
    assert (found[:, 8:] == 255).all()
    inner = (75, 75, 75) if mode[0] == "L" else GREEN
    assert np.abs(found[:, :8] - inner).max() <= 1


def test_half_transparent_is_half_white():
    assert np.abs(seen(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)))) - (255, 127, 127)).max() <= 1


def test_grey_of_16_bits_keeps_its_tones():
    tones = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = seen(encoded(Image.fromarray(tones)))
    assert np.abs(found - tones[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, 2, struct.pack(">3H", 65535, 32768, 0) * 16), (255, 128, 0)),
        (png(16, 4, struct.pack(">2H", 0, 65535) * 16), (0, 0, 0)),
        (png(16, 4, struct.pack(">2H", 0, 0) * 16), WHITE),
        (png(16, 6, struct.pack(">4H", 65535, 0, 0, 65535) * 16), RED),
        (png(16, 0, struct.pack(">H", 1000) * 16, struct.pack(">H", 1000)), WHITE),
        (png(16, 0, struct.pack(">H", 25700) * 16, struct.pack(">H", 1000)), (100, 100, 100)),
        (png(16, 2, struct.pack(">3H", 32768, 32768, 0) * 16, struct.pack(">3H", 32768, 32768, 0)), WHITE),
        (png(2, 0, bytes([0b01010101]) * 4, struct.pack(">H", 1)), WHITE),
        (png(2, 0, bytes([0b10101010]) * 4, struct.pack(">H", 1)), (170, 170, 170)),
        (png(4, 0, bytes([0x55]) * 8, struct.pack(">H", 5)), WHITE),
        (png(1, 0, bytes([0xFF]) * 2), WHITE),
        (png(1, 0, bytes([0x00]) * 2, struct.pack(">H", 0)), WHITE),
    ],
    ids=[
        "RGB 16",
        "grey and opacity 16",
        "nothing 16",
        "RGBA 16",
        "transparent grey 16",
        "other grey 16",
        "transparent colour 16",
        "transparent grey 2",
        "other grey 2",
        "transparent grey 4",
        "1 bit",
        "transparent 1 bit",
    ],
)
def test_depths_of_png(content: bytes, expected: tuple[int, int, int]):
    assert (seen(content) == expected).all()


@pytest.mark.parametrize("mode", ["1", "P"])
def test_few_colours(mode: str):
    image = Image.new("RGB", (16, 16), "white")
    image.paste((0, 0, 0), (0, 0, 8, 16))
    found = seen(encoded(image.convert(mode)))
    assert (found[:, :8] == 0).all() and (found[:, 8:] == 255).all()


def test_cmyk_of_adobe_has_its_tones():
    """In such a JPEG all inks are inverted; Pillow writes and reads it so."""
    found = seen(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(found - RED).max() <= 3


def test_colours_go_through_the_profile():
    """A profile whose green is the red of sRGB shows that it was used; without it the same pixels are green."""
    green = Image.new("RGB", (16, 16), (0, 255, 0))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(seen(encoded(green, icc_profile=srgb)) - (0, 255, 0)).max() <= 1
    swapped = bytearray(srgb)
    count = struct.unpack_from(">I", swapped, 128)[0]
    tags = {bytes(swapped[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, other = tags[b"rXYZ"], tags[b"gXYZ"]
    swapped[red + 4 : red + 12], swapped[other + 4 : other + 12] = (
        swapped[other + 4 : other + 12],
        swapped[red + 4 : red + 12],
    )
    assert np.abs(seen(encoded(green, icc_profile=bytes(swapped))) - RED).max() <= 2
    # On a grey picture an RGB profile says nothing.
    grey = Image.new("L", (16, 16), 90)
    assert (seen(encoded(grey, icc_profile=bytes(swapped))) == 90).all()


def bit_flipped(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), "blue")]}
DAMAGED = {
    "nothing": (b"", "is empty"),
    "text": (b"<html>404</html>", "is not a PNG, JPEG or WebP picture"),
    "another format": (encoded(NOISE, "BMP"), "is not a PNG, JPEG or WebP picture"),
    "half a JPEG": (encoded(NOISE, "JPEG")[:-200], "cannot be decoded"),
    "half a PNG": (encoded(NOISE)[:-200], "cannot be decoded"),
    "half a WebP": (encoded(NOISE, "WEBP", lossless=True)[:-200], "cannot be decoded|is not a PNG"),
    "a header alone": (encoded(NOISE)[:40], "cannot be decoded|is not a PNG"),
    "a changed bit": (bit_flipped(encoded(NOISE)), "cannot be decoded"),
    "a line": (encoded(Image.new("RGB", (300, 15))), r"is 300 x 15 px, expected at least 16 px a side"),
    "a pixel": (encoded(Image.new("RGB", (1, 1))), r"is 1 x 1 px"),
    "a moving PNG": (encoded(NOISE, **FRAMES), r"is animated \(2 frames\)"),
    "a moving WebP": (encoded(NOISE, "WEBP", **FRAMES), r"is animated \(2 frames\)"),
    "a false profile": (encoded(NOISE, icc_profile=b"nonsense"), "has a colour profile that cannot be used"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_cannot_be_used_is_said(kind: str):
    content, words = DAMAGED[kind]
    with pytest.raises(PictureError, match=f"^({words})"):
        read_picture(content)


@pytest.mark.parametrize("times", [1.5, 3])
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, times: float):
    """Pillow itself only warns up to twice its limit."""
    content = encoded(Image.new("RGB", (32, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(32 * 32 / times))
    with pytest.raises(PictureError, match=r"^has more pixels than Pillow's limit of"):
        read_picture(content)


def test_the_second_picture_of_a_telephone_is_no_animation():
    assert (seen(encoded(Image.new("RGB", (32, 32), "red"), "MPO", **FRAMES))[..., 2] < 5).all()


def test_all_damaged_pictures_are_named_at_once(tmp_path: Path):
    for index in range(3):
        NOISE.save(tmp_path / f"good{index}.png")
        (tmp_path / f"bad{index}.png").write_bytes(b"")
    (tmp_path / "good0.txt").write_text("a cat")
    NOISE.save(tmp_path / "good3.png")
    (tmp_path / "good3.txt").write_bytes("ein Kätzchen".encode("latin-1"))
    sources = sources_of(tmp_path)
    with pytest.raises(ValueError) as error:
        checked_pictures(sources)
    told = str(error.value)
    assert told.startswith("4 of 7 pictures cannot be used: bad0.png is empty; bad1.png is empty; ")
    assert "good3.txt cannot be read as UTF-8" in told and told.endswith("by --skip-damaged.") and "\n" not in told
    pictures, remarks = checked_pictures(sources, skip_damaged=True)
    assert [(picture.path.name, picture.caption) for picture in pictures] == [
        ("good0.png", "a cat"),
        ("good1.png", ""),
        ("good2.png", ""),
    ]
    assert remarks[0].startswith("Going on without 4 of 7 pictures: ") and "bad2.png" in remarks[0]
    assert remarks[1:] == ["2 of 3 pictures have no caption, and get an empty text: good1.png, good2.png."]


def test_a_folder_of_damaged_pictures_is_refused_in_any_case(tmp_path: Path):
    for index in range(9):
        (tmp_path / f"{index}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 9 pictures can be used: 0.jpg is empty; .*; and 4 more\."):
        checked_pictures(sources_of(tmp_path), skip_damaged=True)


def test_a_picture_that_changes_meanwhile_is_noticed(tmp_path: Path):
    NOISE.save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png", "", digest_of((tmp_path / "a.png").read_bytes()))
    assert picture.content() == (tmp_path / "a.png").read_bytes()
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^a\.png was changed after it was checked"):
        picture.content()


def test_folders_inside_are_not_passed_over_in_silence(tmp_path: Path):
    for name in ("__MACOSX", ".thumbnails", "cats", "dogs"):
        (tmp_path / name).mkdir()
    (told,) = folders_inside(tmp_path)
    assert told.endswith("holds folders, whose pictures are not taken: cats, dogs.")
    with pytest.raises(ValueError, match="holds no pictures; expected .png"):
        sources_of(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        sources_of(tmp_path / "mice")
