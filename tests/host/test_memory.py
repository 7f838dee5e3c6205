"""What CLEARAttention costs in RAM before the host loads the model."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.host.support_comfy import flux

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_growth(action: Any) -> tuple[int, Any]:
    """Bytes by which the process's peak resident memory passes its resident memory before ``action``."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    result = action()
    return status("VmHWM") - before, result


@pytest.mark.parametrize("width, blocks", [(512, 6), (1024, 8)], ids=["small", "large"])
def test_the_node_holds_the_file_once(host, pack, clear_node, width, blocks, record_property):
    """Memory-mapped, and shared by every clone and every run."""
    weights = import_module(f"{pack.__name__}.clear_core.weights")
    naming = import_module(f"{pack.__name__}.clear_core.weights.naming")
    path = host.base / "models" / "clear" / f"own_{width}.safetensors"
    weights.save_clear_file(
        path,
        {
            name: torch.full((width, width) if name.endswith("weight") else (width,), 0.01, dtype=torch.bfloat16)
            for name in naming.trained_names(blocks, blocks)
        },
        {},
        weights.ClearHeader(blocks),
    )
    size = path.stat().st_size
    model = flux.build_meta_flux(hidden_size=width, num_heads=width // 128, depth=blocks, depth_single_blocks=blocks)
    try:
        first, one = peak_growth(lambda: clear_node(model, weights_name=path.name))
        second, two = peak_growth(lambda: clear_node(one, weights_name=path.name, strength=0.5))
        record_property("file MB", f"{size / 1e6:.0f}")
        record_property("peak over file", f"{first / size:.3f}")
        record_property("second run over file", f"{second / size:.3f}")
        assert first < 1.1 * size
        assert second < 0.1 * size, "a second run must share the first one's mapping"
        assert len(two.patches) == len(one.patches) > 0
    finally:
        path.unlink()
