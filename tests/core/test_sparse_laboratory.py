"""The laboratory of sparse attention: what is seen, counted pair by pair, and comfy-kitchen's own choice and result."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("diffusers")

from clear_core import ClearSpec, SequenceLayout
from clear_core.inspection.locality.attentions import AttentionId, BlockTokens
from demo.experiments.__main__ import main
from demo.experiments.baselines.neighbourhood import Neighbourhood
from demo.experiments.measure import mean
from demo.experiments.sparse.blocks import BLOCK, Blocks
from demo.experiments.sparse.command import RECORD
from demo.experiments.sparse.plans import EXTENTS
from demo.experiments.sparse.run import kept_mass
from demo.experiments.sparse.table import tables
from demo.experiments.sparse.ways import Chosen, Dense, Square, Way, Window, keys_of
from demo.experiments.subject import COMMITTED
from demo.tiny_flux.weights import model_fingerprint

LAYOUTS = [SequenceLayout(24, (16, 20)), SequenceLayout(70, (12, 19))]
LAYOUT = LAYOUTS[1]
CHOSEN = [
    Chosen(4, keep=1),
    Chosen(4, keep=2, tiles=True),
    Chosen(tau=0.7),
    Chosen(tau=0.7, text=False),
    Chosen(tau=0.3, tiles=True),
]


def tokens_of(layout: SequenceLayout, seed: int = 0) -> BlockTokens:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 2, layout.length, 128, generator=generator)
    return BlockTokens(AttentionId(("double", 0)), 3 * q, k, v, layout, 128**-0.5)


def comfy_kitchen() -> Any:
    return pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", CHOSEN, ids=lambda way: way.name)
def test_the_choice_is_that_of_sol_attn(layout: SequenceLayout, way: Chosen):
    """A value that names its own block shows by the result which blocks were seen exactly."""
    comfy_kitchen()
    tokens = tokens_of(layout)
    block_of = way.blocks(layout).block_of
    named = F.one_hot(block_of, 128).float().expand(1, 2, -1, -1).contiguous()
    found = replace(way, tail=False).attend(replace(tokens, v=named))[0] > 0
    chosen = way.choice(tokens)
    assert torch.equal(found[..., : chosen.shape[-1]], chosen[:, block_of])
    assert 0 < chosen.float().mean() < 1
    # The same without the empty places, as the host calls it.
    if not way.tiles:
        q, k, v = (one.transpose(1, 2) for one in (tokens.q, tokens.k, tokens.v))
        sinks = [0, way.blocks(layout).text if way.text else 0]
        ratio = way.keep / (chosen.shape[-1] - sinks[1])
        plain = comfy_kitchen().sol_attn(q, k, v, tau=way.tau, sink_blocks=sinks, sink_q=sinks, topk_ratio=ratio)
        torch.testing.assert_close(way.attend(tokens), plain.transpose(1, 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tiles", [False, True])
def test_a_threshold_below_everything_is_dense_attention(tiles: bool):
    tokens, way = tokens_of(LAYOUT), Chosen(tau=-1000.0, tiles=tiles)
    assert kept_mass([way], [tokens])[0].tolist() == pytest.approx([1, LAYOUT.length, 0], rel=1e-6)
    comfy_kitchen()
    torch.testing.assert_close(way.attend(tokens), tokens.dense(), rtol=0, atol=2e-5)


def test_what_covers_the_picture_keeps_all_attention():
    ways: list[Way] = [Dense(), Window(23), Square(21, side=21), Window(23, 4)]
    for mass, keys, averages in kept_mass(ways, [tokens_of(LAYOUT)]).tolist():
        assert mass == pytest.approx(1, abs=1e-6) and keys == LAYOUT.length and averages == 0


@pytest.mark.parametrize("way", [Window(3), Window(3, 4), Square(3, side=5), *CHOSEN], ids=lambda way: way.name)
def test_kept_mass_and_keys_are_those_of_enumerated_pairs(way: Way):
    """Query by query, in float64, from each way's own sentence."""
    layout = SequenceLayout(5, (9, 11))
    tokens = tokens_of(layout)
    sees, averages_of = sentences(way, tokens)
    total, count, averages = 0.0, 0, 0
    for head in range(2):
        q, k = tokens.q[0, head].double(), tokens.k[0, head].double()
        for query in range(layout.image):
            weights = (k @ q[layout.text + query] * tokens.scale).softmax(0)
            seen = [key for key in range(layout.length) if sees(head, query, key)]
            total, count = total + weights[seen].sum().item(), count + len(seen)
            averages += averages_of(set(range(layout.length)) - set(seen))
    wanted = [each / (2 * layout.image) for each in (total, count, averages)]
    assert kept_mass([way], [tokens])[0].tolist() == pytest.approx(wanted, rel=1e-5)
    if isinstance(way, Window):
        assert keys_of(layout, ClearSpec(3)) == pytest.approx(wanted[1])


def sentences(way: Way, tokens: BlockTokens) -> tuple[Callable[[int, int, int], bool], Callable[[set[int]], int]]:
    """Whether an image query of a head sees a key exactly; and how many averages the keys that it does not see make."""
    layout = tokens.layout

    def places(query: int, key: int) -> list[tuple[int, int]]:
        return [divmod(query, layout.grid[1]), divmod(key - layout.text, layout.grid[1])]

    if isinstance(way, Chosen):
        block_of, choice = way.blocks(layout).block_of.tolist(), way.choice(tokens).tolist()
        return (
            lambda head, query, key: choice[head][block_of[layout.text + query]][block_of[key]],
            lambda rest: len({block_of[key] for key in rest}),
        )
    if isinstance(way, Window):

        def in_circle(_: int, query: int, key: int) -> bool:
            (y, x), (v, u) = places(query, key)
            return key < layout.text or (y - v) ** 2 + (x - u) ** 2 < way.radius**2

        cells = [tuple(at // 4 for at in places(0, key)[1]) for key in range(layout.length)]
        return in_circle, lambda rest: len({cells[key] for key in rest}) if way.cells else 0
    assert isinstance(way, Square)
    side = way.side

    def in_square(_: int, query: int, key: int) -> bool:
        query_at, key_at = places(query, key)
        corner = [min(max(at - side // 2, 0), end - side) for at, end in zip(query_at, layout.grid, strict=True)]
        inside = all(first <= at < first + side for first, at in zip(corner, key_at, strict=True))
        return key < layout.text or inside

    return in_square, lambda rest: 0


def test_blocks_hold_every_token_once_and_tiles_are_squares():
    for layout in LAYOUTS:
        for tiles in (False, True):
            blocks = Blocks.of(layout, tiles)
            live = blocks.tokens >= 0
            assert sorted(blocks.tokens[live].tolist()) == list(range(layout.length))
            assert torch.equal(live, torch.arange(BLOCK) < blocks.lengths[:, None]), "what is empty stands behind"
            owners = live.nonzero()[:, 0]
            assert torch.equal(blocks.block_of[blocks.tokens[live]], owners)
            holds_text = ((blocks.tokens >= 0) & (blocks.tokens < layout.text)).any(1)
            assert holds_text.tolist() == [index < blocks.text for index in range(len(blocks.tokens))]
        # The last blocks of `tiles` are squares.
        for one in blocks.tokens[blocks.text :]:
            rows, columns = (
                (one[one >= 0] - layout.text) // layout.grid[1],
                (one[one >= 0] - layout.text) % layout.grid[1],
            )
            assert len(set((rows // 8).tolist())) == len(set((columns // 8).tolist())) == 1


def test_a_fitted_way_has_keys_nearest_to_its_window():
    tokens = [tokens_of(LAYOUTS[0], seed) for seed in range(2)]
    layout = tokens[0].layout
    wanted = keys_of(layout, ClearSpec(9))
    for open_way, sizes in ((Chosen(9), range(1, 5)), (Chosen(9, tiles=True), range(1, 6))):
        chosen = open_way.fitted(tokens)
        every = [replace(open_way, keep=keep) for keep in sizes]
        away = {way: abs(kept_mass([way], tokens)[0, 1].item() - wanted) for way in every}
        assert away[chosen] == min(away.values()) and len(set(away.values())) > 1
    assert 11**2 + 13**2 < 2 * (wanted - layout.text) < 13**2 + 15**2, "13 is the nearest odd side"
    assert Square(9).fitted(tokens) == Square(9, side=13)
    assert Window(9).fitted(tokens) == Window(9)


def test_squares_without_text_are_na2d():
    kitchen = comfy_kitchen()
    for grid, side in (((9, 12), 5), ((7, 10), 9)):
        layout = SequenceLayout(0, grid)
        tokens = tokens_of(layout)
        parts = (one.transpose(1, 2).unflatten(1, grid) for one in (tokens.q, tokens.k, tokens.v))
        theirs: Tensor = kitchen.na2d(*parts, [side, side]).flatten(1, 2).transpose(1, 2)
        # A kernel larger than an axis is that axis, in both.
        ours = Neighbourhood(side)(tokens.q, tokens.k, tokens.v, layout)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_quick_run_goes_on_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    comfy_kitchen()
    path = tmp_path / "record.json"
    command = ["sparse", "--extent", "quick", "--threads", "1", "--out", str(tmp_path), "--record", str(path)]
    main(command)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.keys() == json.loads(RECORD.read_text(encoding="utf-8")).keys()
    assert tables(record) in capsys.readouterr().out
    (part,) = record["sizes"]
    assert len(part["rows"]) == len(EXTENTS["quick"].sizes[0].ways(COMMITTED)) == tables(record).count("\n") - 1
    (dense, *others) = part["rows"]
    assert dense["mass"] == pytest.approx(1, abs=1e-6) and dense["errors"] == [0.0]
    assert all(0 < row["mass"] < 1 and row["errors"][0] > 1e-6 for row in others)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    main(command)
    assert json.loads(path.read_text(encoding="utf-8")) == record
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == stamps, "made again"


@pytest.mark.parametrize("module", [None, object()])
def test_without_comfy_kitchen_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", module)
    with pytest.raises(SystemExit, match=r"comfy-kitchen .*0\.2\.33 or later"):
        main(["sparse", "--extent", "quick", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_record_is_of_the_committed_model_and_has_every_way():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["model"] == model_fingerprint()
    for part, size in zip(record["sizes"], EXTENTS["full"].sizes, strict=True):
        assert [row["radius"] for row in part["rows"]] == [way.radius for way in size.ways(COMMITTED)]
        assert (part["side"], tuple(part["levels"]), part["scenes"]) == (size.side, size.levels, size.scenes)


def kinds_of(part: dict[str, Any]) -> dict[tuple[int, str], dict[str, Any]]:
    """Rows of a size by radius and name without numbers of tokens; "distilled" stands before the name."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for row in part["rows"]:
        words = re.sub(r",|radius \d+|\d+ x \d+|\d+ best blocks?", "", row["way"]).split()
        name = " ".join((["distilled"] if row["weights"] == "distilled" else []) + words)
        rows[row["radius"], name] = row | {"error": mean(row["errors"])}
    assert len(rows) == len(part["rows"])
    return rows


def test_the_record_says_what_the_pages_say():
    """demo/experiments/README.md and docs/sparse.md, claim by claim."""
    small, large = map(kinds_of, json.loads(RECORD.read_text(encoding="utf-8"))["sizes"])
    for rows in (small, large):
        radii = sorted({radius for radius, _ in rows} - {0})
        for radius in radii:
            names = ("CLEAR", "CLEAR overview", "square", "sol_attn", "sol_attn tiles")
            circle, overview, square, blocks, tiles = (rows[radius, name] for name in names)
            assert abs(circle["mass"] - square["mass"]) < 0.015 and 0.6 < square["error"] / circle["error"] < 1.1
            assert overview["error"] < circle["error"] / 5, "windows alone are far from dense attention"
            assert tiles["error"] > blocks["error"] / 1.1, "square tiles are no better"
            if blocks["keys"] < 1.1 * circle["keys"]:
                assert blocks["mass"] > circle["mass"] + 0.07 and blocks["error"] < overview["error"]
            if (radius, "distilled CLEAR") in rows:
                distilled = rows[radius, "distilled CLEAR"]
                assert distilled["mass"] < circle["mass"] and distilled["error"] < circle["error"]
        assert rows[0, "sol_attn tau 1.3 as the node calls it"]["error"] > 3 * rows[0, "sol_attn tau 1.3"]["error"]
        assert rows[radii[1], "sol_attn no averages"]["error"] > rows[radii[1], "sol_attn"]["error"]

    def error(rows: dict[tuple[int, str], dict[str, Any]], radius: int, name: str) -> float:
        return rows[radius, name]["error"]

    fewest = min(error(large, 8, name) for name in ("sol_attn", "sol_attn tiles"))
    assert max(error(large, 8, name) for name in ("CLEAR overview", "distilled CLEAR")) < fewest
    assert (
        large[8, "sol_attn"]["mass"] < large[8, "CLEAR"]["mass"]
        and large[8, "sol_attn"]["keys"] > large[8, "CLEAR"]["keys"]
    )
    assert large[8, "CLEAR overview"]["averages"] > 3 * large[8, "sol_attn"]["averages"]
    assert error(small, 4, "CLEAR overview") > error(small, 8, "sol_attn") > error(small, 8, "CLEAR overview")
    assert small[8, "sol_attn"]["keys"] > small[0, "dense"]["keys"] / 4
    assert error(large, 16, "distilled CLEAR") > 4 * error(large, 8, "distilled CLEAR"), "never saw this size"


def test_the_page_quotes_the_rule_of_the_log():
    project = Path(__file__).resolve().parents[2]
    rule = runpy.run_path(str(project / "nodes" / "host" / "model" / "host_sparse.py"))["RULE"]
    page = (project / "docs" / "sparse.md").read_text(encoding="utf-8")
    assert rule in " ".join(page.replace("\n> ", " ").split())
