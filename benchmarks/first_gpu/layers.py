"""2. Milliseconds of one layer at every size and window, beside dense attention and what else there is.

3. FlexAttention beside the Triton kernel, in rounds of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from clear_core import ClearSpec
from clear_core.attention import explain_backend

from ..attention import ROW_MAJOR
from ..flux import matmul_tflops
from .bench import Bench, Measurement
from .compare import compare
from .contenders import backends, dense, row_major
from .installed import others, published_windows
from .scale import Scale

SECTION = "One layer"
PAIR_SECTION = "FlexAttention and the Triton kernel"
PAIR = ("flex", "triton")
MAIN_SIZES = ("4K", "2K")
LATER_SIZES = ("8K", "1K")
OTHERS, PUBLISHED = "other libraries", "NATTEN's published windows"


def measurements(scale: Scale) -> list[Measurement]:
    """The most common sizes first, because the time is limited."""
    middle, *_ = scale.radii
    main = [_windows(size, radius, 1) for size in MAIN_SIZES for radius in scale.radii]
    pooled = [_windows(size, radius, scale.down_factor) for size in MAIN_SIZES for radius in scale.radii]
    beside = [
        *(_dense(size, 5) for size in MAIN_SIZES),
        *(_row_major(size, middle) for size in scale.row_major),
        *(_others(size, ClearSpec(middle)) for size in MAIN_SIZES),
        Measurement(f"{PUBLISHED} 4K", SECTION, 5, _published),
    ]
    later = [
        *(_windows(size, middle, 1, later=True) for size in LATER_SIZES),
        *(_dense(size, 25, later=True) for size in LATER_SIZES),
        *(
            _windows(size, radius, down_factor, later=True)
            for size in LATER_SIZES
            for radius in scale.radii
            for down_factor in (1, scale.down_factor)
            if (radius, down_factor) != (middle, 1)
        ),
        *(_row_major(size, radius, later=True) for size, radius in scale.row_major_again),
    ]
    return [Measurement("peak", SECTION, 5, _peak), *main, *beside, *pooled, *later]


def pair_measurements(scale: Scale) -> list[Measurement]:
    """The two compiled kernels, plain and pooled."""
    return [
        Measurement(f"{size}, {spec}, {' and '.join(PAIR)}", PAIR_SECTION, 3, partial(windows, size, spec, names=PAIR))
        for size in MAIN_SIZES
        for spec in (ClearSpec(scale.radii[0]), ClearSpec(scale.radii[0], scale.down_factor))
    ]


def _windows(size: str, radius: int, down_factor: int, later: bool = False) -> Measurement:
    spec = ClearSpec(radius, down_factor)
    return Measurement(f"{size}, {spec}", SECTION, 5 if later else 3, partial(windows, size, spec), later)


def windows(size: str, spec: ClearSpec, bench: Bench, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Our backends, all or some."""
    scale, layout = bench.scale, bench.scale.layout(size)
    contenders = backends(layout, spec, bench, names) if names else backends(layout, spec, bench)
    found = compare(contenders, layout, bench)
    auto, why = explain_backend(bench.device, scale.dtype, scale.head_dim, layout.grid, spec)
    return {**_about(size, spec), "auto": auto, "why": why, **found}


def _about(size: str, spec: ClearSpec | None) -> dict[str, Any]:
    if spec is None:
        return {"size": size, "radius": None, "down_factor": None}
    return {"size": size, "radius": spec.radius, "down_factor": spec.down_factor}


def _dense(size: str, expected: float, later: bool = False) -> Measurement:
    def run(bench: Bench) -> dict[str, Any]:
        layout = bench.scale.layout(size)
        return {**_about(size, None), **compare(dense(layout), layout, bench)}

    return Measurement(f"{size}, dense", SECTION, expected, run, later)


def _row_major(size: str, radius: int, later: bool = False) -> Measurement:
    def run(bench: Bench) -> dict[str, Any]:
        layout, spec = bench.scale.layout(size), ClearSpec(radius)
        return {**_about(size, spec), **compare([row_major(layout, spec, bench)], layout, bench)}

    return Measurement(f"{size}, radius {radius}, {ROW_MAJOR}", SECTION, 20, run, later)


def _others(size: str, spec: ClearSpec) -> Measurement:
    def run(bench: Bench) -> dict[str, Any]:
        layout = bench.scale.layout(size)
        return {**_about(size, None), **compare(others(layout, spec), layout, bench)}

    return Measurement(f"{size}, {OTHERS}", SECTION, 10, run)


def _published(bench: Bench) -> dict[str, Any]:
    layout = bench.scale.layout("4K")
    return {**_about("4K", None), **compare(published_windows(layout, bench), layout, bench)}


def _peak(bench: Bench) -> dict[str, Any]:
    tflops = matmul_tflops(bench.device, bench.scale.dtype)
    return {"matmul_tflops": round(tflops, 3), "line": f"a large matrix product: {tflops:.3g} TFLOP/s"}
