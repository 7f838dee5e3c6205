"""What a folder of samples was made from: remembered, and compared before anybody goes on with it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core.distill.folder_record import Record, begin, fingerprint_of_samples, read_record, unfinished
from clear_core.distill.model_content import local_folder, model_content
from clear_core.distill.samples import SampleFolder, write_sample

RECORD = Record(
    {"command": "images", "model": "12ab", "pixels": 1024, "dtype": "bfloat16"},
    {name: {"content": f"{name} 1", "caption": f"{name} 2"} for name in ("a.png", "b.png", "c.png")},
    {"model": "my-flux"},
)


def changed(**values: object) -> Record:
    return dataclasses.replace(RECORD, values=RECORD.values | values)


def with_items(**items: dict[str, str] | None) -> Record:
    found = RECORD.items | {f"{name}.png": item for name, item in items.items()}
    return dataclasses.replace(RECORD, items={name: found[name] for name in sorted(found) if found[name]})


def test_a_record_is_read_as_it_was_written_and_goes_on_with_the_same(tmp_path: Path):
    assert read_record(tmp_path) is None
    begin(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD and list(read_record(tmp_path).items) == ["a.png", "b.png", "c.png"]
    begin(tmp_path, dataclasses.replace(RECORD, notes={"model": "/elsewhere/my-flux"}))
    assert read_record(tmp_path) == RECORD and os.listdir(tmp_path) == ["samples.json"]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (changed(pixels=512), "holds samples made with pixels 1024, and now it is 512; go on as before, or choose"),
        (changed(dtype="float32"), "made with dtype bfloat16, and now it is float32"),
        (changed(model="99ff"), r"made with model my-flux \(12ab\), and now it is my-flux \(99ff\)"),
        (changed(command="generate"), "made with command images, and now it is generate"),
        (changed(steps=4), "made with steps None, and now it is 4"),
        (with_items(bb={"content": "x", "caption": ""}), "made from something else: bb.png is new; put it back"),
        (with_items(b=None), "b.png is gone; put it back as it was, or choose another folder"),
        (with_items(b={"content": "x", "caption": "b.png 2"}), "something else: b.png has another content;"),
        (with_items(b={"content": "b.png 1", "caption": "x"}), "something else: b.png has another caption;"),
        (with_items(**{f"x{i}": {"content": "", "caption": ""} for i in range(7)}), "x4.png is new and 2 more;"),
        (dataclasses.replace(RECORD, items=dict(reversed(RECORD.items.items()))), "something else: their order;"),
    ],
)
def test_going_on_with_something_else_is_refused_by_name(tmp_path: Path, now: Record, words: str):
    begin(tmp_path, RECORD)
    with pytest.raises(ValueError, match=words):
        begin(tmp_path, now)
    assert read_record(tmp_path) == RECORD


def test_samples_of_which_nobody_knows_are_refused(data: Path):
    with pytest.raises(ValueError, match=r"holds samples, and no samples\.json that says what they were made from"):
        begin(data, RECORD)
    assert not (data / "samples.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        '{"values": {}, "items": {"a": 1}, "notes": {}}',
        '{"values": {}, "items": {"a": {"content": 1}}, "notes": {}}',
        '{"values": {"a": []}}',
        "[" * 100_000,
    ],
    ids=["empty", "cut", "list", "nothing", "no item", "no digest", "no value", "deep"],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str):
    (tmp_path / "samples.json").write_text(text)
    for work in (lambda: begin(tmp_path, RECORD), lambda: read_record(tmp_path)):
        with pytest.raises(ValueError, match=r"samples\.json is damaged \(.*put the file back, or choose another"):
            work()
    assert (tmp_path / "samples.json").read_text() == text


def test_a_training_remembers_its_samples_by_content(data: Path):
    first = SampleFolder(data, end=-4).fingerprint()
    assert first["samples"] == 8 and len(first["sample_content"]) == 32
    assert SampleFolder(data).fingerprint() == fingerprint_of_samples(data) != first
    path = data / "0000011.safetensors"  # Held out: the training knows nothing of it.
    tensors = load_file(path)
    save_file(tensors | {"pooled": tensors["pooled"] + 1}, path)
    assert SampleFolder(data, end=-4).fingerprint() == first
    path = data / "0000003.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"pooled": tensors["pooled"] + 1}, path)
    assert SampleFolder(data, end=-4).fingerprint() != first
    save_file(tensors, path)
    assert SampleFolder(data, end=-4).fingerprint() == first
    (data / "0000002.safetensors").rename(data / "0000012.safetensors")
    assert SampleFolder(data, end=-4).fingerprint() != first


def test_samples_that_are_still_missing_are_told(tmp_path: Path):
    begin(tmp_path, RECORD)
    write_sample(tmp_path, 0, torch.ones(4, 8, 8), torch.ones(3, 8), torch.ones(8))
    (told,) = unfinished(tmp_path)
    assert "holds 1 of the 3 samples that were asked for" in told
    for index in (1, 2):
        write_sample(tmp_path, index, torch.ones(4, 8, 8), torch.ones(3, 8), torch.ones(8))
    assert unfinished(tmp_path) == []
    (tmp_path / "samples.json").unlink()
    assert unfinished(tmp_path) == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("transformer", "vae"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        save_file({"a": torch.zeros(400, 500)}, folder / name / "weights.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X", "transformer": [], "vae": []}))
    return folder


def test_a_fine_tune_in_the_same_place_is_another_model(model: Path, tmp_path: Path):
    """Its names, shapes and sizes are those of the old one."""
    before = model_content(model)
    save_file({"a": torch.full((400, 500), 1e-3)}, model / "transformer" / "weights.safetensors")
    assert model_content(model) != before
    save_file({"a": torch.zeros(400, 500)}, model / "transformer" / "weights.safetensors")
    assert model_content(model) == before
    (model / "vae" / "config.json").write_text('{"scaling_factor": 1}')
    assert model_content(model) != before


def test_a_model_that_moved_is_the_same(model: Path, tmp_path: Path):
    before = model_content(model)
    (model / "samples").mkdir()
    (model / "samples" / "0000000.safetensors").write_bytes(b"")
    (model / "vae" / "._config.json").write_bytes(b"\0\5\26\7")
    model.rename(tmp_path / "other")
    assert model_content(tmp_path / "other") == before


def test_a_model_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("huggingface_hub")
    assert local_folder(str(tmp_path)) == tmp_path
    for name in ("nobody/has-such-a-model", "a/b/c", str(tmp_path / "nothing")):
        assert local_folder(name) is None
