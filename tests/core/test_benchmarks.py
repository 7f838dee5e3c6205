"""What the measurements compare with: the row-major blocks of the published code, and the sums over rounds."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.row_major import BLOCK, block_map, block_mask
from benchmarks.timing import interleaved, summary
from clear_core import ClearSpec, SequenceLayout

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid, text", [((24, 20), 128), ((16, 64), 256), ((33, 17), 0), ((3, 300), 100)], ids=str)
@pytest.mark.parametrize("radius", [1, 4, 20])
def test_row_major_blocks_are_torchs_own(grid, text, radius):
    layout, spec = SequenceLayout(text, grid), ClearSpec(radius)
    mask = block_mask(layout, spec, CPU)
    expected = create_block_mask(
        mask.mask_mod, None, None, layout.length, layout.length, device="cpu", BLOCK_SIZE=BLOCK
    )
    assert torch.equal(block_map(layout, spec), expected.to_dense()[0, 0].bool())
    assert torch.equal(mask.to_dense(), expected.to_dense())


def test_speed_up_is_the_median_of_the_rounds_ratios():
    seconds = {"sdpa": [1.0, 10.0, 4.0], "gather": [0.5, 1.0, 2.0]}
    assert summary(seconds, "sdpa")["gather"] == {"median_ms": 1000.0, "speed_up": 2.0}


def test_rounds_are_interleaved():
    order = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=3)
    assert "".join(order) == "ababab"
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


def test_what_guidance_costs_is_its_record_and_below_2_percent():
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    results = json.loads((folder / "records" / "guidance_comfyui_0_33.json").read_text(encoding="utf-8"))["results"]
    percent = {name: [100 * one["runs"][name]["share_of_step"] for one in results] for name in results[0]["runs"]}
    assert [one["side"] for one in results] == [1024, 2048] and max(map(max, percent.values())) < 2
    said = re.search(
        r"CLEAR Guide ([\d.]+) to ([\d.]+) %, align ([\d.]+) to ([\d.]+) %, record below ([\d.]+) %",
        (folder / "README.md").read_text(encoding="utf-8"),
    )
    guides = [*percent["decay"], *percent["shift"]]
    wanted = [round(one, 1) for one in (min(guides), max(guides), min(percent["align"]), max(percent["align"]))]
    assert said is not None and [float(one) for one in said.groups()[:4]] == wanted
    assert max(percent["record"]) < float(said[5])
