"""Places of tokens in tiles on models of other families than FLUX.1: those of the whole frame."""

from __future__ import annotations

import pytest
import torch

from tests.host.support_comfy.families import FAMILIES
from tests.host.support_comfy.kinds import GRID, SIGMA, TILE, in_tiles_of, noise
from tests.host.support_comfy.positions import recorded_ids
from tests.host.support_comfy.sampling import predict
from tests.host.support_comfy.test_only_models import KINDS

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.


@pytest.fixture(scope="module")
def tiled(host, pack, host_part):
    """``tiled(kind, model)`` is the model in tiles."""
    return lambda kind, model: in_tiles_of(host_part, kind, model)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "SD3.5"])
def test_tiles_have_the_positions_of_the_whole_frame(tiled, name):
    """Ids that count from the picture's corner, from its middle, and such as the model itself shifts."""
    family = FAMILIES[name]
    kind = family.kind
    if not kind.is_known:
        pytest.skip(f"this ComfyUI does not know {name}")
    model, x = kind.build(), noise(kind)
    with recorded_ids() as seen:
        predict(model, x, SIGMA, family.prompt())
        whole = list(seen)
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, family.prompt())
    calls = len(seen) // 6
    assert calls == len(whole)
    for number, (y, left) in enumerate((y, left) for y in (0, 1) for left in (0, 2, 3)):
        for ids, frame in zip(seen[calls * number :], whole, strict=False):
            start = image_start(frame)
            if start is None:  # Z-Image's text, by itself
                assert torch.equal(ids, frame)
                continue
            expected = frame[start : start + 24].unflatten(0, GRID)[y : y + 3, left : left + 3]
            assert torch.equal(ids[start : start + 9], expected.flatten(0, 1)), (number, ids)
            assert torch.equal(ids[:start], frame[:start])


def test_a_table_of_positions_is_read_at_the_tiles_place(tiled):
    """SD3's, which the host crops to the middle; where the frame is past its end, a tile has the middle as before."""
    kind, seen = KINDS["SD3.5"], []
    for most in (64, 5):
        model, x = kind.build(pos_embed_max_size=most, num_patches=most**2), noise(kind)
        inner = model.model.diffusion_model
        inner.x_embedder.register_forward_hook(lambda module, args, out: seen.append(out.detach().clone()))
        joint = type(inner).forward_core_with_concat
        inputs: list[torch.Tensor] = []
        inner.forward_core_with_concat = lambda image, *args, **kw: (
            inputs.append(image) or joint(inner, image, *args, **kw)
        )
        if most == 64:
            predict(model, x, SIGMA, kind.prompt())
            whole = (inputs.pop() - seen.pop())[0].unflatten(0, GRID)
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, kind.prompt())
        assert len(inputs) == len(seen) == 6
        tiles = [(image - embedded)[0].unflatten(0, TILE) for image, embedded in zip(inputs, seen, strict=True)]
        for number, (y, left) in enumerate((y, left) for y in (0, 1) for left in (0, 2, 3)):
            expected = whole[y : y + 3, left : left + 3] if most == 64 else tiles[0]
            assert torch.allclose(tiles[number], expected, atol=1e-5)
        seen.clear()


def image_start(ids: torch.Tensor) -> int | None:
    """Index of the first image token of a frame of :data:`GRID`, found by rows and columns that count evenly."""
    steps = torch.stack(torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij"), dim=-1).flatten(
        0, 1
    )
    for start in range(len(ids) - len(steps) + 1):
        # HunyuanImage has no axis of time; Kandinsky counts by halves.
        places = ids[start : start + len(steps), -2:] if ids.shape[1] == 2 else ids[start : start + len(steps), 1:3]
        if any(torch.equal(places - places[:1], step * steps.to(places)) for step in (1, 0.5)):
            return start
    return None


@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image"])
def test_references_are_whole_and_keep_their_places(tiled, name):
    kind = KINDS[name]
    model, x = kind.build(), noise(kind)
    positive = kind.prompt(reference_latents=[noise(kind, (2, 3), seed=5)])
    with recorded_ids() as seen:
        predict(model, x, SIGMA, positive)
        whole = seen[0]
        seen.clear()
        predict(tiled(kind, model), x, SIGMA, positive)
    assert len(seen) == 6 and all(torch.equal(ids[-6:], whole[-6:]) for ids in seen)
