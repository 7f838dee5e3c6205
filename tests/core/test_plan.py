"""The tile order and its block lists, against what each query sees, written out."""

import concurrent.futures
import dataclasses
import math
import random

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.attention.backends.flex.block_mask import (
    first_image_key,
    kernel_lists,
    key_block,
    mask_by_division,
    mask_by_table,
)
from clear_core.attention.backends.flex.copies import copy_from_tiles, copy_to_tiles
from clear_core.attention.tiling import gathered
from clear_core.attention.tiling.classes import tile_classes
from clear_core.attention.tiling.gathered import GatheredKeys
from clear_core.attention.tiling.kept import KeptValues
from clear_core.attention.tiling.order import KEY_BLOCK, QUERY_BLOCK, TileOrder
from clear_core.attention.tiling.plan import tile_plan

CPU = torch.device("cpu")


def some_cases(number):
    draw = random.Random(7)
    for _ in range(number):
        grid = draw.randint(1, 45), draw.randint(1, 45)
        layout = SequenceLayout(draw.choice([0, 1, 63, 64, 65]), grid, draw.choice([0, 0, 5]))
        spec = ClearSpec(draw.choice([1, 2, 5, 8, 16, 33, 100]), draw.choice([1, 1, 2, 4]))
        first = draw.randrange(grid[0])
        rows = draw.choice([range(grid[0]), range(first, draw.randint(first + 1, grid[0]))])
        name = f"{grid[0]}x{grid[1]}-T{layout.text}-R{layout.reference}-r{spec.radius}-d{spec.down_factor}"
        yield pytest.param(layout, spec, rows, id=f"{name}-rows{rows.start}to{rows.stop}")


def oracle_in_tile_order(plan, block):
    """bool (queries, keys) in the kernel's order from the oracle's mask; padded queries and keys see nothing."""
    layout = plan.layout
    seen = image_rows_mask(plan.query_rows, layout, plan.spec, CPU)
    image = layout.image_slice
    # The oracle's keys are text, image, reference, pooled.
    prefix = torch.cat([seen[:, : image.start], seen[:, image.stop :]], dim=1)
    window = seen[:, image]

    def index_in_grid(order):
        """Index in its row-major grid of each token of the kernel's order; -1 is padding."""
        index = torch.zeros(1, 1, order.tokens, 1)
        copy_to_tiles(torch.arange(1.0, order.grid[0] * order.grid[1] + 1)[None, None, :, None], index, order)
        return index.flatten().long() - 1

    query, key = index_in_grid(plan.queries), index_in_grid(plan.keys)
    real = query >= 0
    start = first_image_key(plan, block)
    expected = torch.zeros(len(query), start + len(key), dtype=torch.bool)
    expected[:, : plan.prefix] = prefix[query] & real[:, None]
    expected[:, start:] = window[query][:, key] & real[:, None] & (key >= 0)
    return expected, real


@pytest.mark.parametrize("block", [KEY_BLOCK, QUERY_BLOCK], ids=["forward", "gradient"])
@pytest.mark.parametrize("layout, spec, rows", list(some_cases(60)))
def test_lists_and_mask_are_the_oracles(layout, spec, rows, block):
    plan = tile_plan(layout, spec, CPU, rows)
    expected, real = oracle_in_tile_order(plan, block)
    query, key = torch.arange(expected.shape[0])[:, None], torch.arange(expected.shape[1])
    for form in (mask_by_division, mask_by_table):
        mask = form(plan, block)(0, 0, query, key)
        assert torch.equal(mask[real], expected[real])

    partial_count, partial, full_count, full = (one[0, 0] for one in kernel_lists(plan, block))
    assert partial.shape == full.shape
    for tile in range(plan.query_tiles):
        rows = slice(tile * QUERY_BLOCK, (tile + 1) * QUERY_BLOCK)
        blocks = expected[rows][real[rows]].unflatten(1, (-1, block))
        listed_partial = partial[tile, : partial_count[tile]].tolist()
        listed_full = full[tile, : full_count[tile]].tolist()
        assert len({*listed_partial, *listed_full}) == len(listed_partial) + len(listed_full)
        # What is listed as full runs without the mask, so a padded key must not be in it.
        assert all(bool(blocks[:, one].all()) for one in listed_full)
        seen = set(blocks.any(dim=2).any(dim=0).nonzero().flatten().tolist())
        assert seen <= {*listed_partial, *listed_full}
        if bool(real[rows].any()):
            # Tight: each listed block is near enough for the corners of the two rectangles.
            nearest = {one for one in listed_partial + listed_full if bool(blocks[:, one].any())}
            assert nearest == {*listed_partial, *listed_full}


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_torchs_backward_kernel_can_take_our_blocks(capability, head_dim, monkeypatch):
    """torch leaves out steps that do not divide the blocks, and fails if none is left: at the first backward pass."""
    heuristics = pytest.importorskip("torch._inductor.template_heuristics.triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    for dtype in (torch.bfloat16, torch.float16):
        steps = heuristics.CUDAConfigHeuristic().get_flex_attn_bwd_configs(head_dim, dtype)
        assert any(
            QUERY_BLOCK % one.block_m1 == QUERY_BLOCK % one.block_m2 == 0
            and key_block(True) % one.block_n1 == key_block(True) % one.block_n2 == 0
            for one in steps
        )


@pytest.mark.parametrize("grid", [(1, 1), (16, 8), (8, 16), (17, 9), (40, 33)], ids=str)
def test_tile_order_and_back_is_the_identity(grid):
    order = TileOrder.least_padding(grid)
    tokens = torch.randn(2, 3, grid[0] * grid[1], 5)
    tiled = torch.full((2, 3, order.tokens, 5), float("nan"))
    copy_to_tiles(tokens, tiled, order)
    back = torch.empty_like(tokens)
    copy_from_tiles(tiled, back, order)
    assert torch.equal(back, tokens)
    # The padding is zero.
    assert tiled.count_nonzero() == tokens.count_nonzero() and not tiled.isnan().any()


def test_a_block_of_the_kernel_is_one_rectangle():
    tiled = torch.empty(1, 1, 1024, 2)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    copy_to_tiles(torch.stack([y, x], dim=-1).view(1, 1, 1024, 2), tiled, TileOrder.least_padding((32, 32)))
    for tokens, sides in ((QUERY_BLOCK, {(16, 8), (8, 16)}), (KEY_BLOCK, {(8, 8)})):
        for block in tiled.view(-1, tokens, 2):
            spread = block.max(dim=0).values - block.min(dim=0).values + 1
            assert tuple(spread.int().tolist()) in sides


def test_orientation_pads_least():
    assert TileOrder.least_padding((52, 76)).tokens == 56 * 80
    assert TileOrder.least_padding((48, 84)).tokens == 48 * 88


def test_plan_is_small_at_8k():
    assert tile_plan(SequenceLayout(512, (512, 512)), ClearSpec(32), CPU).nbytes < 2**20


def test_plan_is_shared_frozen_and_bounded():
    layout, spec = SequenceLayout(3, (9, 9)), ClearSpec(2)
    plan = tile_plan(layout, spec, CPU)
    assert tile_plan(SequenceLayout(3, (9, 9)), ClearSpec(2), CPU) is plan
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.layout = layout
    for side in range(1, 60):
        tile_plan(SequenceLayout(0, (side, side)), spec, CPU)
    assert tile_plan.cache_info().currsize <= 16


def test_plans_from_several_threads_agree():
    layouts = [SequenceLayout(side % 5, (side, 31)) for side in range(1, 25)] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(lambda layout: tile_plan(layout, ClearSpec(5), CPU), layouts))
    for layout, plan in zip(layouts, plans, strict=True):
        assert plan.layout == layout
        assert torch.equal(plan.partial, tile_plan.__wrapped__(layout, ClearSpec(5), CPU).partial)


def test_plan_made_under_inference_mode_serves_autograd():
    layout, spec = SequenceLayout(1, (11, 13)), ClearSpec(3)
    with torch.inference_mode():
        plan = tile_plan.__wrapped__(layout, spec, CPU)
    assert not plan.partial.is_inference()


@pytest.mark.parametrize("grid", [(1, 1), (7, 3), (16, 16), (24, 65), (100, 40)], ids=str)
@pytest.mark.parametrize("radius", [1, 4, 16, 150])
@pytest.mark.parametrize("tile", [(16, 16), (16, 32)], ids=str)
@pytest.mark.parametrize("part", [(0, 1), (0.3, 0.6)], ids=["all", "part"])
def test_gathered_tiles_hold_every_query_once_and_every_key_it_sees(grid, radius, tile, part):
    height, width = grid
    rows = range(int(part[0] * height), math.ceil(part[1] * height))
    times_seen = torch.zeros(height * width, dtype=torch.int64)
    for tiles in tile_classes(grid, ClearSpec(radius), tile, CPU, rows):
        first_y, first_x = tiles.first // width, tiles.first % width
        key_y, key_x = first_y[:, None] + tiles.key_y, first_x[:, None] + tiles.key_x
        assert int(key_y.min()) >= 0 and int(key_y.max()) < height
        assert int(key_x.min()) >= 0 and int(key_x.max()) < width
        for y in range(tiles.size[0]):
            for x in range(tiles.size[1]):
                times_seen[(first_y + y) * width + first_x + x] += 1
                inside = (tiles.key_y - y).int().square() + (tiles.key_x - x).int().square() < radius**2
                # As many keys as the query's window has on this grid: none is missing, none is there twice.
                all_y, all_x = torch.arange(height)[:, None], torch.arange(width)
                for one_y, one_x in zip((first_y + y).tolist()[:2], (first_x + x).tolist()[:2], strict=True):
                    window = (all_y - one_y).square() + (all_x - one_x).square() < radius**2
                    assert int(inside.sum()) == int(window.sum())
                if tiles.covered:
                    assert bool(inside.all())
    wanted = torch.zeros(height, width, dtype=torch.int64)
    wanted[rows.start : rows.stop] = 1
    assert torch.equal(times_seen, wanted.flatten())


# ---- what gathered attention keeps ----


@pytest.mark.parametrize("tile", [(16, 16), (16, 32), (32, 32)], ids=str)
@pytest.mark.parametrize("radius", [8, 16, 32])
def test_what_is_kept_for_512_x_512_takes_less_than_64_mib(radius, tile, monkeypatch):
    monkeypatch.setattr(gathered, "query_tile", lambda device, radius: tile)
    keys = GatheredKeys(ClearSpec(radius), CPU, range(512), pooled=0, shared=True, dtype=torch.bfloat16)
    plan = gathered._make(SequenceLayout(512, (512, 512)), keys, tile)
    storages = [one.untyped_storage() for one in tensors_in(plan)]
    held = sum({one.data_ptr(): one.nbytes() for one in storages}.values())
    assert 2**20 < held <= plan.nbytes < 64 * 2**20
    assert sum(one.queries.numel() for one in plan.classes) == 512 * 512


def tensors_in(value):
    """Every tensor that a plan holds."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in tensors_in(one)]
    if dataclasses.is_dataclass(value) and not isinstance(value, ClearSpec | GatheredKeys):
        return [tensor for field in dataclasses.fields(value) for tensor in tensors_in(getattr(value, field.name))]
    return []


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (24, 65), (70, 43)], ids=str)
@pytest.mark.parametrize("radius", [1, 4, 16])
@pytest.mark.parametrize("room", [0, 2**30], ids=["cut in every call", "kept"])
def test_masks_that_are_cut_are_those_of_the_classes(grid, radius, dtype, room, monkeypatch):
    monkeypatch.setattr(gathered, "MOST_MASK_BYTES", room)
    spec, rows = ClearSpec(radius), range(grid[0] // 3, grid[0])
    keys = GatheredKeys(spec, CPU, rows, pooled=5, shared=True, dtype=dtype)
    plan = gathered._make(SequenceLayout(3, grid, 2), keys, (16, 16))
    classes = tile_classes(grid, spec, (16, 16), CPU, rows)
    for made, tiles in zip(plan.classes, classes, strict=True):
        assert made.keys.shape[1] == 5 + 3 + 2 + tiles.keys and (made.mask is None) == tiles.covered
        if made.mask is not None and dtype is None:
            assert torch.equal(made.mask, tiles.window(spec))
        elif made.mask is not None:
            assert torch.equal(made.mask[:, 10:] == 0, tiles.window(spec)) and not made.mask[:, :10].any()
            assert made.mask.stride(0) * 2 % 16 == 0 and set(made.mask.unique().tolist()) <= {0.0, -math.inf}


class Value:
    def __init__(self, nbytes):
        self.nbytes = nbytes


def test_kept_values_are_bounded_by_their_bytes():
    kept, made = KeptValues(100), []

    def value(name, nbytes=40):
        return kept.get(name, lambda: made.append(name) or Value(nbytes))

    first = value("a")
    assert value("a") is first and made == ["a"]
    value("b")
    value("a")
    value("c")  # b was asked for least recently
    assert kept.nbytes == 80 and value("a") is first and made == ["a", "b", "c"]
    huge = value("d", 1000)
    assert value("d", 1000) is huge and kept.nbytes == 1000


def test_kept_values_from_several_threads_are_the_same():
    kept = KeptValues(10**6)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: kept.get(i % 7, lambda: Value(1)), range(700)))
    for i, value in enumerate(values):
        assert value is values[i % 7]
    assert kept.nbytes == 7
