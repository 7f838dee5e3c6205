"""What docs/parallel.md says: bytes and memory counted by hand, and the limits of the estimate."""

from __future__ import annotations

import json
import math
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from benchmarks.memory_table import WEIGHTS
from benchmarks.parallel import memory
from benchmarks.parallel.estimate import LAYERS, LINKS, Base, Link, layout_of, speed_up, tensor_parallel_traffic
from benchmarks.parallel.peers import SilentPeers
from benchmarks.parallel.tables import bytes_rows, memory_rows, speed_rows
from benchmarks.tables import pages
from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.memory import GIB
from clear_core.parallel import attend_by_heads, clear_attention_strip, split_rows, strip_traffic
from tests.host.support_comfy.live_bytes import LiveBytes

PROJECT = Path(__file__).resolve().parents[3]
PAGE = PROJECT / "docs" / "parallel.md"
NO_TIME = Link("without any loss", math.inf, 0)


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.measured()


def cells(rows: list[str], side: int, ranks: int) -> list[str]:
    """One row of a table, without picture and GPUs."""
    (row,) = [row for row in rows if row.startswith(f"| {side} x {side} | {ranks} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][2:]


@pytest.mark.parametrize("page", sorted(pages()))
def test_the_pages_hold_the_tables_of_the_code(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    assert [name for name, rows in pages()[page].items() if "\n".join(rows) not in text] == []


@pytest.mark.parametrize(
    "side, ranks, border, text, pooled, heads",
    [
        # As counted on paper: K and V of radius - 1 rows, to both sides of an inner strip; pooled ones of the own cells
        # to all others; text parts to those who join them, and joined ones to all.
        (4096, 2, "22 / 47 / 98", "3.2", "25", "406"),
        (4096, 4, "44 / 94 / 195", "4.8", "38", "304"),
        (4096, 8, "44 / 94 / 195", "5.5", "44", "178"),
        (8192, 8, "88 / 189 / 390", "5.5", "176", "706"),
        (2048, 4, "22 / 47 / 98", "4.8", "9.4", "78"),
        # With radius 32, strips of 8 rows: 8 rows to each of six other ranks, and 7 to one.
        (1024, 8, "11 / 24 / 43", "5.5", "2.8", "12"),
    ],
    ids=str,
)
def test_bytes_are_those_counted_by_hand(side, ranks, border, text, pooled, heads):
    assert cells(bytes_rows(), side, ranks)[1:5] == [border, text, pooled, heads]
    # A ring's all-reduce, four in three layers.
    ring = 2 * (ranks - 1) / ranks * (512 + (side // 16) ** 2) * 3072 * 2
    assert tensor_parallel_traffic(layout_of(side), ranks) == pytest.approx(4 / 3 * ring)


def test_what_sends_least_is_named():
    found = bytes_rows()
    assert cells(found, 4096, 2)[-1] == "strips" and cells(found, 1024, 8)[-1] == "heads"
    assert cells(found, 1024, 4)[-1] == "strips / heads / heads"
    assert cells(found, 4096, 16)[4:] == ["-", "-", "strips"], "24 heads cannot be dealt out to 16"


def test_the_base_is_what_the_record_says(base):
    """The rest of a step is taken from both of its steps; put together again they are within 3 % of each."""
    results = json.loads((PROJECT / "benchmarks/records/h100.json").read_text(encoding="utf-8"))["results"]
    for size, side in (("2K", 2048), ("4K", 4096)):
        step = results[f"{size}, radius 16, step"]["runs"]["triton"]["step_ms"]
        attention = results[f"{size}, radius 16"]["runs"]["triton"]["median_ms"]
        assert base.attention[side, 16] == attention
        again = LAYERS * (attention + base.per_token * layout_of(side).length)
        assert again == pytest.approx(step, rel=0.03)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("side", [1024, 4096])
def test_without_any_loss_the_work_is_shared_out(side, ranks, base):
    assert speed_up(side, 16, ranks, NO_TIME, "heads", base) == pytest.approx(ranks)
    strips = speed_up(side, 16, ranks, NO_TIME, "strips", base)
    # The text's linear layers are done by every rank; nothing else is done twice.
    linear = base.per_token * layout_of(side).length
    shared_out = base.attention[side, 16] / ranks + base.per_token * (512 + (side // 16) ** 2 / ranks)
    assert strips < ranks
    assert strips == pytest.approx((base.attention[side, 16] + linear) / shared_out, rel=0.05)


@pytest.mark.parametrize("way", ["strips", "heads"])
def test_the_slower_the_link_the_slower_the_step(way, base):
    rates = [math.inf, 300, 45, 10, 1, 0]
    found = [speed_up(4096, 16, 2, Link("", rate, 20), way, base) for rate in rates]
    assert found == sorted(found, reverse=True) and len(set(found)) == len(found)
    assert found[-2] < 1 and found[-1] == 0
    assert speed_up(4096, 16, 2, Link("", 0, 20), way, base, hidden=0.5) == 0


def test_one_device_is_as_fast_as_itself(base):
    for way in ("strips", "heads"):
        assert speed_up(2048, 8, 1, LINKS[-1], way, base) == pytest.approx(1)


def test_what_is_hidden_costs_nothing_and_slower_cards_gain_more(base):
    link = LINKS[-1]
    assert speed_up(4096, 16, 2, link, "strips", base, hidden=1) == speed_up(4096, 16, 2, NO_TIME, "strips", base)
    fast, slow = (speed_up(4096, 16, 2, link, "strips", base, slower=slower) for slower in (1, 4))
    assert fast < slow < speed_up(4096, 16, 2, NO_TIME, "strips", base)


@pytest.mark.parametrize(
    "radius, seconds, strips, heads", [(8, 69, 1.90, 1.20), (16, 83, 1.86, 1.28), (32, 110, 1.80, 1.40)], ids=str
)
def test_by_the_paper_s_seconds_it_gives_what_was_worked_out_by_hand(radius, seconds, strips, heads):
    """4096 x 4096 in 20 steps on an H100, two of them, 20 GB/s."""
    paper = Base({(4096, radius): 0.0}, seconds / 20 * 1e3 / LAYERS / layout_of(4096).length)
    link = Link("", 20, 0)
    assert speed_up(4096, radius, 2, link, "strips", paper) == pytest.approx(strips, rel=0.015)
    assert speed_up(4096, radius, 2, link, "heads", paper) == pytest.approx(heads, rel=0.015)


def test_the_table_of_times_shows_both_ways(base):
    rows = speed_rows(base, LINKS, 16, 1)
    found = cells(rows, 4096, 2)[2]
    ways = [speed_up(4096, 16, 2, LINKS[2], way, base) for way in ("strips", "heads")]
    assert found == " / ".join(f"{one:.1f}" for one in ways)
    assert cells(rows, 4096, 16)[0].endswith(" / -")


def test_what_tensor_parallelism_cuts_is_diffusers_own_plan():
    flux = pytest.importorskip("diffusers.models.transformers.transformer_flux").FluxTransformer2DModel
    plan = getattr(flux, "_tp_plan", None)
    if plan is None:
        pytest.skip("this diffusers has no tensor parallelism")
    with torch.device("meta"):
        model = flux(guidance_embeds=True)
    cut = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if any(fnmatch(name, one) for one in plan) and hasattr(module, "weight")
    )
    assert memory.cut_weights() == 2 * cut
    assert WEIGHTS["bf16"] == pytest.approx(2 * sum(one.numel() for one in model.parameters()), rel=0.001)


def test_memory_of_one_card_is_that_of_docs_memory_and_falls_with_cards():
    rows = memory_rows(16)
    for side, whole in ((2048, "24.9"), (4096, "28.3"), (8192, "43.5")):
        assert cells(rows, side, 1)[0] == whole
        by_cards = [[float(one) for one in cells(rows, side, ranks)] for ranks in (1, 2, 4, 8)]
        assert all(list(column) == sorted(column, reverse=True) for column in zip(*by_cards, strict=True))
        weights = WEIGHTS["bf16"] / GIB + 1
        assert all(min(one[:3]) >= round(weights, 1) for one in by_cards), "all weights are on every card"
        assert by_cards[-1][3] < weights


def test_figures_in_the_page_s_sentences():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    fp8, q4 = (f"{(WEIGHTS['bf16'] - WEIGHTS[name]) / GIB:.1f}" for name in ("fp8", "GGUF Q4"))
    assert f"fp8 takes {fp8} GiB less of each figure, GGUF Q4 {q4}." in text
    assert f"{memory.cut_weights() / 1e9:.1f} of {WEIGHTS['bf16'] / 1e9:.1f} GB" in text
    assert float(cells(memory_rows(16), 1024, 2)[3]) < 16 < float(cells(memory_rows(16), 2048, 2)[3])
    found = re.search(r"exchange takes (\d+) µs with NVLink, (\d+) with peer access, (\d+) without", text)
    assert found is not None
    assert [float(one) for one in found.groups()] == [LINKS[0].latency, LINKS[1].latency, LINKS[3].latency]
    sends = [float(one) + 3.2 for one in cells(bytes_rows(), 4096, 2)[1].split(" / ")]
    assert [round(406 / one) for one in sends] == [16, 8, 4], "a fourth to a sixteenth"


@pytest.mark.parametrize("ranks", [2, 4])
def test_heads_hold_as_many_states_as_planned(ranks):
    """On entry of attention: the parts as sent, as received, and put together."""
    heads, tokens = 8, 96
    q, k, v = torch.randn(3, 1, heads, tokens, 16).unbind()
    counted: list[float] = []
    with torch.no_grad(), LiveBytes() as count:

        def attend(one: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            counted.append(count.total / (q.numel() * 4))
            return torch.zeros_like(one)

        attend_by_heads(attend, q, k, v, peers=SilentPeers(1, ranks), text_tokens=8)
    assert counted == [pytest.approx(3 * (ranks - 1) / ranks + 6)]
    assert memory.heads_copies(ranks) == math.ceil(counted[0])


@pytest.mark.parametrize("ranks, height, radius", [(2, 256, 8), (2, 256, 16), (4, 512, 16)], ids=str)
def test_a_strip_s_attention_stays_below_the_plan(ranks, height, radius):
    """Beside what the same attention takes on one device, for as many tokens."""
    width, heads, head_dim, text = 128, 4, 64, 256
    spec, own = ClearSpec(radius), len(split_rows(height, ranks)[1])
    q, k, v = torch.randn(3, 1, heads, text + own * width, head_dim).unbind()
    with torch.no_grad():
        with LiveBytes() as alone:
            clear_attention(q, k, v, grid=(own, width), spec=spec, backend="gather")
        with LiveBytes() as strip:
            clear_attention_strip(
                q, k, v, peers=SilentPeers(1, ranks), grid=(height, width), spec=spec, backend="gather"
            )
    layout = SequenceLayout(text, (height, width))
    border = strip_traffic(layout, spec, ranks, heads=heads, head_dim=head_dim, element_bytes=4)[1].border
    state = q.numel() * 4
    assert strip.peak <= alone.peak + memory.STRIP_COPIES * state + memory.BORDER_COPIES * border
    assert strip.peak > alone.peak, "the border is somewhere"
