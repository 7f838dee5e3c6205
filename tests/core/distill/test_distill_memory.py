"""``--estimate`` against the memory that is counted in the real step of the small FLUX."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.training_memory import RECORD, TINY_WAYS, tiny
from clear_core.distill import __main__ as command
from clear_core.distill.memory_count import MemoryCount
from demo.tiny_flux.weights import MODEL_FILE


@pytest.mark.parametrize("way", TINY_WAYS)
def test_estimate_is_within_five_percent_of_the_counted_peak(way: str):
    values, _ = TINY_WAYS[way]
    if values.get("base") == "fp8":
        pytest.importorskip("torchao")
    if values.get("base") == "nf4" or values.get("optimizer") == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    said, found = tiny(way)
    assert said.peak == pytest.approx(found.peak, rel=0.05)
    assert (said.base, said.trained, said.host) == pytest.approx((found.base, found.trained, found.host), rel=0.01)
    assert found.peak > found.base + 2 * found.trained


def test_the_record_keeps_the_goals():
    """FLUX.1-dev at rank 64: 18 GB with an fp8 base and 13 with nf4; whole weights in 48 GB with 8-bit AdamW."""
    results = json.loads(RECORD.read_text(encoding="utf-8"))["results"]
    dev = {row["way"]: row["peak"] / 1e9 for row in results if row["model"] == "FLUX.1-dev" and row["side"] == 1024}
    assert dev["rank 64, fp8 base"] < 18 and dev["rank 64, nf4 base"] < 13
    assert dev["whole weights, 8-bit AdamW"] < 48 and dev["whole weights, offload"] < 48
    tiny_flux = [row["peak"] / row["counted"] for row in results if "counted" in row]
    assert len(tiny_flux) == len(TINY_WAYS) and all(0.95 < share < 1.05 for share in tiny_flux)


def test_the_count_is_of_what_lives_at_once():
    with MemoryCount() as counter:
        a = torch.zeros(1000)
        assert counter.now == 4000
        view = a[10:].view(-1, 10)
        b = a + 1
        del a
        assert counter.now == 8000, "a view keeps the storage"
        del view
        assert counter.now == 4000 and counter.peak == 8000
        del b
    assert counter.now == 0
    with MemoryCount(ignored=[kept := torch.zeros(10)]) as counter:
        counter.add(kept)
        assert counter.now == 0


@pytest.mark.parametrize("options", [[], ["--rank", "64", "--base", "nf4", "--offload"]], ids=["whole", "nf4 offload"])
def test_the_command_prints_it_without_samples_or_weights(options: list[str], capsys: pytest.CaptureFixture[str]):
    status = command.main(["train", "--model", str(MODEL_FILE), "--radius", "8", "--estimate", *options])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "Estimate for tiny_flux.safetensors (FLUX.1)" in said.out and "GB on the card" in said.out
    assert ("offloaded weights" in said.out) == bool(options)


def test_prodigy_is_estimated_too(monkeypatch: pytest.MonkeyPatch):
    """The paper's recipe; it asks its tensors for numbers, and these have none."""
    pytest.importorskip("prodigyopt")
    monkeypatch.setitem(TINY_WAYS, "Prodigy", ({"optimizer": "prodigy"}, {}))
    said, found = tiny("Prodigy")
    assert said.peak == pytest.approx(found.peak, rel=0.05)
    assert found.peak > found.base + 5 * found.trained, "its states: two means, the start, and a sum"


@pytest.mark.parametrize(
    "options, words",
    [
        (["--size", "0", "64"], "height is 0; expected a whole number of at least 16"),
        (["--size", "64", "-64"], "width is -64; expected a whole number of at least 16"),
        (["--size", "64", "1000"], "width is 1000; expected a multiple of 16 px"),
        (["--text-tokens", "-4"], "text_tokens is -4; expected a whole number of at least 1"),
        (["--form", "lora"], "form is 'lora', but whole weights are trained"),
    ],
    ids=["no height", "negative width", "half a token", "negative text", "form"],
)
def test_what_cannot_be_estimated_is_refused(options: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["train", "--model", str(MODEL_FILE), "--radius", "8", "--estimate", *options]) == 1
    assert words in capsys.readouterr().err


def test_pooled_windows_are_estimated_without_the_pooling_and_say_so(capsys: pytest.CaptureFixture[str]):
    arguments = ["train", "--model", str(MODEL_FILE), "--radius", "8", "--estimate", "--size", "64", "64"]
    assert command.main([*arguments, "--down-factor", "2"]) == 0
    assert "What pooling adds is not in it." in capsys.readouterr().out
