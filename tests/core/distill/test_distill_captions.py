"""Captions: where they are found, in which encodings, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clear_core.distill.captions import CaptionError, caption_of, lines_of
from clear_core.distill.inputs import sources_of

TEXT = "ein Kätzchen, 猫 🐱"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with mark"])
@pytest.mark.parametrize("suffix", [".txt", ".json", ".TXT"])
def test_encodings(tmp_path: Path, encoding: str, suffix: str):
    path = tmp_path / f"a{suffix}"
    text = json.dumps({"prompt": TEXT}, ensure_ascii=False) if suffix == ".json" else f"{TEXT}\r\n"
    path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be") if "with" in encoding else text.encode(encoding))
    assert caption_of([path]) == TEXT
    (tmp_path / "a.png").touch()
    assert sources_of(tmp_path)[0].captions == (path,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TEXT[:12].encode("latin-1"), "a.txt cannot be read as UTF-8 .byte 5.; expected UTF-8, or UTF-16 with its"),
        ("a cat".encode("utf-16-le"), "a.txt has zero bytes in its text; expected UTF-8, or UTF-16 with its"),
        (b"\xff\xfea", "a.txt cannot be read as UTF-16"),
    ],
    ids=["Latin-1", "UTF-16 without mark", "half of UTF-16"],
)
def test_other_encodings_are_named(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CaptionError, match=words):
        caption_of([tmp_path / "a.txt"])
    with pytest.raises(ValueError, match=words):
        lines_of(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "value",
    [TEXT, {"prompt": TEXT}, {"caption": f" {TEXT}"}, {"text": TEXT, "width": 1024}, {"prompt": TEXT, "text": TEXT}],
    ids=str,
)
def test_forms_of_json(tmp_path: Path, value: object):
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert caption_of([tmp_path / "a.json"]) == TEXT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat", "a.json cannot be read as JSON; expected a text, or an object"),
        ("[" * 100_000, "a.json cannot be read as JSON"),
        ('["a cat"]', r"a.json holds no caption \(\['a cat'\]\); expected a text, or an object"),
        ('{"title": "a cat"}', r"a.json holds no caption \(None\)"),
        ('{"prompt": 5}', r"a.json holds no caption \(5\)"),
        ('{"prompt": "a cat", "text": "a dog"}', "a.json holds different captions under prompt and text"),
        (r'"a \ud83d cat"', "a.json holds half a character"),
    ],
)
def test_other_json_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CaptionError, match=words):
        caption_of([tmp_path / "a.json"])


def test_two_captions_of_one_picture_must_agree(tmp_path: Path):
    text, data = tmp_path / "a.txt", tmp_path / "a.json"
    text.write_text("a cat\n")
    data.write_text('{"prompt": "a cat"}')
    assert caption_of([data, text]) == "a cat"
    data.write_text('{"prompt": "a dog"}')
    with pytest.raises(CaptionError, match="a.json and a.txt hold different captions of one picture"):
        caption_of([data, text])


def test_a_line_is_a_caption(tmp_path: Path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa cat\r\n\n  a dog\u2028on two lines \rthe end".encode())
    assert lines_of(path) == ["a cat", "a dog\u2028on two lines", "the end"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="captions.txt holds no captions; expected one on each line"):
        lines_of(path)
    with pytest.raises(ValueError, match="is not a file; expected a text file"):
        lines_of(tmp_path)
