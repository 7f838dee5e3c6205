"""What Triton makes of the kernel for cards that are not here, and how often it would have to."""

from dataclasses import dataclass, field

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.triton import block_shapes
from clear_core.attention.backends.triton.launch import BlockShape, KernelTensors, launch
from clear_core.attention.tiling.plan import tile_plan

pytest.importorskip("triton", reason="Triton is not installed")

# These need the tools in Triton's wheel.
triton_compile = pytest.importorskip("benchmarks.triton_compile")


def binder():
    """Triton's own: from arguments to what a kernel is compiled for."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from clear_core.attention.backends.triton.kernel import clear_kernel

    return create_function_from_signature(
        clear_kernel.signature, clear_kernel.params, make_backend(GPUTarget("cuda", 80, 32))
    )


@dataclass(frozen=True)
class Sizes:
    """A call of the kernel."""

    text: int = 512
    reference: int = 0
    radius: int = 16
    down_factor: int = 1
    overview: bool = False
    batch: int = 1
    heads: int = 2
    head_dim: int = 16
    scale: float = 0.25
    strided: bool = False
    inside_heads: slice = field(default_factory=lambda: slice(None))


def compiled_for(monkeypatch, grid, **changes):
    """What the kernel would be compiled for by a call of such a size."""
    from clear_core.attention.backends.triton import kernel as triton_kernel

    sizes, asked = Sizes(**changes), []

    class Recorder:
        def __getitem__(self, launch_grid):
            return lambda **arguments: asked.append(arguments)

    bind = binder()
    monkeypatch.setattr(triton_kernel, "clear_kernel", Recorder())
    layout = SequenceLayout(sizes.text, grid, sizes.reference)
    q, k, v, out, _wide = torch.empty(5, sizes.batch, sizes.heads, layout.length, sizes.head_dim).unbind()
    if sizes.strided:
        v = torch.empty(sizes.batch, layout.length, 7, sizes.heads, sizes.head_dim)[:, :, 2].transpose(1, 2)
    spec = ClearSpec(sizes.radius, sizes.down_factor, sizes.overview).within(grid)
    plan = tile_plan(layout, spec, torch.device("cpu"))
    prefix = torch.empty(sizes.batch, sizes.heads, plan.prefix, sizes.head_dim)
    lse = torch.empty(out.shape[:3])
    parts = (one[:, sizes.inside_heads] for one in (q, k, v, prefix, prefix, out, lse))
    launch(BlockShape(128, 64, 8, 3), KernelTensors(*parts), plan, sizes.scale)
    monkeypatch.undo()
    options = {name: asked[0].pop(name) for name in ("num_warps", "num_stages")}
    return str(bind(**asked[0])[1]), options


def test_one_compilation_serves_every_size(monkeypatch):
    first = compiled_for(monkeypatch, (64, 64))
    for other in (
        {"grid": (1, 1), "text": 0},
        {"grid": (17, 33), "text": 1, "heads": 3},
        {"grid": (16, 8), "radius": 1},
        {"grid": (90, 160), "batch": 2},
        {"grid": (20, 41), "reference": 7, "down_factor": 4},
        {"grid": (20, 41), "scale": 1.0},
        {"grid": (33, 16), "strided": True, "heads": 24},
        {"grid": (33, 9), "text": 4, "heads": 3, "inside_heads": slice(1, 2)},
    ):
        assert compiled_for(monkeypatch, **other) == first, other


def test_one_compilation_serves_every_overview(monkeypatch):
    first = compiled_for(monkeypatch, (64, 64), down_factor=4, overview=True)
    assert first != compiled_for(monkeypatch, (64, 64))
    for other in (
        {"grid": (1, 1), "text": 0, "down_factor": 1},
        {"grid": (17, 33), "radius": 3, "down_factor": 3, "reference": 5},
        {"grid": (90, 160), "radius": 32, "down_factor": 5, "heads": 24},
    ):
        assert compiled_for(monkeypatch, **other, overview=True) == first, other


def test_strides_are_64_bits_whatever_their_size():
    from clear_core.attention.backends.triton.kernel import STRIDES, clear_kernel

    kinds = {param.name: param.annotation_type for param in clear_kernel.params}
    assert {kinds[name] for name in STRIDES} == {"i64"}


def test_what_does_change_the_kernel(monkeypatch):
    first = compiled_for(monkeypatch, (64, 64))
    assert compiled_for(monkeypatch, (64, 64), head_dim=32) != first
    # Past it a square no longer fits a float32.
    assert compiled_for(monkeypatch, (1, 3000), radius=2500) != first


COMPILED = [
    (capability, dtype, shape)
    for capability in (80, 89, 90)
    for dtype in ("bfloat16", "float32")
    for shape in block_shapes.candidate_shapes("cuda", divmod(capability, 10), getattr(torch, dtype), 128)
]
QUICK = (80, "bfloat16", BlockShape(64, 32, 4, 2))


@pytest.mark.parametrize(
    "capability, dtype, shape",
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{case[1]}-{case[2].block_m}x{case[2].block_n}",
            marks=[] if case == QUICK else [pytest.mark.slow],
        )
        for case in COMPILED
    ],
)
def test_it_compiles_and_fits_the_card(capability, dtype, shape):
    compiled = triton_compile.compile_kernel(capability, dtype, 128, shape)
    found = triton_compile.resources(compiled, capability, shape.warps)
    assert found["fits"] and found["programs_per_sm"] >= 1
    if dtype != "float32":
        assert found["tensor_cores"] == ("wgmma.mma_async" if capability == 90 else "mma.sync")
        # With one stage nothing is copied ahead.
        assert (found["wide_async_copies"] > 0) == (shape.stages > 1)
        # Five walks: the prefix in whole blocks and the rest of it, tiles whole, cut by a circle, by the border.
        assert len(found["loop_instructions"]) == 5
        assert found["spills_in_loops"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("capability, dtype, shape", COMPILED, ids=str)
def test_an_overview_compiles_and_fits_the_card(capability, dtype, shape):
    compiled = triton_compile.compile_kernel(capability, dtype, 128, shape, overview=True)
    found = triton_compile.resources(compiled, capability, shape.warps)
    assert found["fits"] and found["programs_per_sm"] >= 1
    if dtype != "float32":
        # Two more walks, far from the windows and near them; only the latter is longer than a tile cut by a circle.
        assert len(found["loop_instructions"]) == 7
        far, near = found["loop_instructions"][2:4]
        assert far <= 1.3 * found["loop_instructions"][0] and near <= 2.1 * found["loop_instructions"][0]


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 50, 72])
def test_other_head_sizes_compile(head_dim):
    shape = block_shapes.candidate_shapes("cuda", (8, 9), torch.float16, head_dim)[0]
    compiled = triton_compile.compile_kernel(89, "float16", head_dim, shape)
    assert triton_compile.resources(compiled, 89, shape.warps)["fits"]


@pytest.mark.slow
def test_far_windows_and_odd_strides_compile():
    import triton.language as tl

    shape = BlockShape(64, 32, 4, 2)
    compiled = triton_compile.compile_kernel(80, "float16", 64, shape, UNIT=1, DISTANCE=tl.int32)
    assert triton_compile.resources(compiled, 80, shape.warps)["fits"]
