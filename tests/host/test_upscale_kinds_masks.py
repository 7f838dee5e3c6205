"""Masked work on models of other families than FLUX.1: only the tiles that a mask touches are computed."""

from __future__ import annotations

import pytest
import torch

from tests.host.support_comfy.kinds import counted, enlarged
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import relative_error
from tests.host.support_comfy.test_only_models import KINDS, TinyKind

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, host, pack) -> TinyKind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def enlarge(host):
    """``enlarge(kind, model, image, **inputs)`` is picture, samples and info of CLEARUpscale."""
    return lambda *args, **inputs: enlarged(host, *args, **inputs)


def mask_of_a_tenth(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 5] = 1
    return mask


def test_a_mask_over_a_tenth_computes_the_tiles_that_it_touches(kind, host_part, enlarge):
    """Everything else is bit for bit what it is when all tiles are computed, and the counted work falls with them."""
    model, calls = counted(kind.build())
    side = 4 * kind.unit
    image = picture(side, 10 * kind.unit)
    mask = mask_of_a_tenth(*image.shape[1:3])
    inputs = {"upscale_by": 1.0, "mask": mask, "tile_width": side // 2, "tile_height": side // 2, "tile_overlap": 0}
    forecast = host_part("upscale.forecast")
    out, samples, info = enlarge(kind, model, image, **inputs)
    assert len(calls) == 2 * 1 and "10 tiles of" in info and "9 of them without a masked pixel" in info
    assert forecast._evaluations["euler"] == pytest.approx(1.0, rel=0.01)
    every = model.clone()
    every.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    calls.clear()
    expected, expected_samples, _ = enlarge(kind, every, image, **inputs)
    assert len(calls) == 2 * 10
    assert torch.equal(samples, expected_samples) and torch.equal(out, expected)
    outside = mask[0] == 0
    assert torch.equal(out[:, outside], image[:, outside]) and not torch.equal(out, image)


def test_masks_of_a_batch_are_its_items(kind, enlarge):
    """With an axis of time too, where the host takes the masks of a batch for frames."""
    side = 2 * kind.unit
    image = picture(side, side).repeat(2, 1, 1, 1)
    mask = torch.zeros(2, side, side)
    mask[0, :, : side // 2] = 1
    mask[1, : side // 2] = 1
    both, _, _ = enlarge(kind, kind.build(), image, mask=mask, upscale_by=1.0)
    alone, _, _ = enlarge(kind, kind.build(), image[:1], mask=mask[:1], upscale_by=1.0)
    for item in (0, 1):
        outside = mask[item] == 0
        assert torch.equal(both[item, outside], image[item, outside])
        assert not torch.equal(both[item, ~outside], image[item, ~outside])
    assert relative_error(both[:1], alone) < 1e-4
