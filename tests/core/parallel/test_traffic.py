"""The formula for bytes: known sizes counted by hand. test_threads.py and test_processes.py hold it to what is sent."""

import pytest

from clear_core import ClearSpec, SequenceLayout
from clear_core.parallel import heads_traffic, strip_traffic

FLUX = {"heads": 24, "head_dim": 128}
ELEMENTS = 24 * 128


def test_a_picture_of_4096_pixels_on_four_ranks():
    layout = SequenceLayout(512, (256, 256))
    first, inner, *_ = strip_traffic(layout, ClearSpec(16, 4), 4, **FLUX)
    border = 2 * 15 * 256 * ELEMENTS * 2  # K and V of 15 rows in bfloat16
    assert (first.border, inner.border) == (border, 2 * border)
    assert inner.text == 2 * 3 * 128 * ELEMENTS * 2  # parts of the others' shares, and the own share to each of them
    assert inner.lse == 3 * 128 * 24 * 4
    assert inner.pooled == 3 * 2 * 16 * 64 * ELEMENTS * 2
    assert heads_traffic(layout.length, 4, **FLUX) == 4 * layout.length * ELEMENTS * 2 * 3 // 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("spec", [ClearSpec(8), ClearSpec(32, 4), ClearSpec(500)], ids=str)
def test_never_more_than_the_border_rings_for_the_text_and_the_pooled_keys(spec, ranks):
    """Rings send (ranks - 1) times what they gather, and twice that for a sum, here of float32."""
    layout = SequenceLayout(512, (100, 130), 77)
    found = strip_traffic(layout, spec, ranks, **FLUX)
    shared, pooled = 512 + 77, 25 * 33 if spec.pools else 0
    assert sum(one.text for one in found) <= 2 * (ranks - 1) * shared * ELEMENTS * 4
    assert sum(one.lse for one in found) <= ranks * (ranks - 1) * shared * 24 * 4
    assert sum(one.pooled for one in found) == (ranks - 1) * 2 * pooled * ELEMENTS * 2
    reach = min(100, spec.radius - 1)
    assert sum(one.border for one in found) <= 2 * 2 * (ranks - 1) * reach * 130 * ELEMENTS * 2
    if spec.radius == 8:
        assert sum(one.border for one in found) == 2 * 2 * (ranks - 1) * 7 * 130 * ELEMENTS * 2


def test_averaged_rows_need_no_sums():
    layout = SequenceLayout(512, (100, 130))
    exact, average = (strip_traffic(layout, ClearSpec(8), 4, average=one, **FLUX) for one in (False, True))
    assert [one._replace(lse=0) for one in exact] == list(average)
    assert all(one.lse for one in exact)
