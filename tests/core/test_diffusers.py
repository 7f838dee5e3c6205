"""CLEAR in a diffusers FLUX: the published numbers, and no trace before, beside or after."""

from __future__ import annotations

import copy
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file

from clear_core import ClearSpec
from clear_core.families import FLUX1
from clear_core.weights import read_clear_file

diffusers = pytest.importorskip("diffusers")

from clear_core.integrations.diffusers import apply_clear  # noqa: E402
from clear_core.integrations.flux_denoiser import FluxDenoiser, pack_latent, unpack_latent  # noqa: E402
from clear_core.integrations.frame import grid_ids, read_frame  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(
    path.stem.removeprefix("case_") for path in GOLDEN.glob("case_*.safetensors") if "sdedit" not in path.stem
)
PAST_THE_DIAGONAL = 1000


def metadata(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[key])


@pytest.fixture
def flux() -> Any:
    """The tiny FLUX of the golden vectors, base weights."""
    path = GOLDEN / "base.safetensors"
    model = diffusers.FluxTransformer2DModel(**metadata(path, "config")).eval()
    model.load_state_dict(load_file(path))
    return model


def student_path(case: dict[str, Any]) -> Path:
    return GOLDEN / f"student_{case['student_seed']}_down{case['down_factor']}.safetensors"


def call_inputs(grid: tuple[int, int], text: int = 5, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, grid[0] * grid[1], 16, generator=rng),
        "encoder_hidden_states": torch.randn(batch, text, 32, generator=rng),
        "pooled_projections": torch.randn(batch, 16, generator=rng),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": grid_ids(grid),
        "txt_ids": torch.zeros(text, 3),
    }


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


def golden_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    path = GOLDEN / f"case_{name}.safetensors"
    case, tensors = metadata(path, "case"), load_file(path)
    batch = tensors["hidden_states"].shape[0]
    inputs = {
        "hidden_states": tensors["hidden_states"],
        "encoder_hidden_states": tensors["encoder_hidden_states"],
        "pooled_projections": tensors["pooled"],
        "timestep": torch.full((batch,), case["sigma"]),
        "guidance": torch.full((batch,), case["guidance"]),
        "img_ids": grid_ids((case["height"], case["width"])),
        "txt_ids": torch.zeros(case["text_len"], 3),
    }
    return case, inputs, tensors["output"]


def apply_case(model: Any, case: dict[str, Any], **changes: Any) -> Any:
    wanted = {
        "spec": ClearSpec(case["radius"] or PAST_THE_DIAGONAL, case["down_factor"]),
        "ntk_factor": case["ntk_factor"],
        "proportional_attention": "on" if case["proportional_attention"] else "off",
    } | changes
    return apply_clear(model, wanted.pop("spec"), **wanted)


@pytest.mark.parametrize("name", CASES)
def test_golden_case(flux: Any, name: str) -> None:
    case, inputs, expected = golden_case(name)
    apply_case(flux, case)
    if not name.startswith("full"):
        # After applying, the file's spatial weights find their place by their published names.
        assert flux.load_state_dict(load_file(student_path(case)), strict=False).unexpected_keys == []
    assert relative(run(flux, inputs), expected) < 1e-5


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) == 7


def test_spatial_weights_argument_equals_loading_the_file(flux: Any) -> None:
    case, inputs, expected = golden_case("down4_r8")
    file = read_clear_file(student_path(case))
    assert flux.load_state_dict(dict(file.tensors()), strict=False).unexpected_keys == []
    apply_case(flux, case, spatial_weights=file.spatial_weights())
    assert relative(run(flux, inputs), expected) < 1e-5


def test_removal_restores_stock(flux: Any) -> None:
    inputs = call_inputs((10, 12))
    before, processors, keys = run(flux, inputs), dict(flux.attn_processors), list(flux.state_dict())
    embedder = flux.pos_embed
    with apply_clear(flux, ClearSpec(3, 4), ntk_factor=10.0, proportional_attention="on") as handle:
        assert relative(run(flux, inputs), before) > 1e-3
        assert len(flux.state_dict()) == len(keys) + 3
    assert torch.equal(run(flux, inputs), before)
    assert list(flux.state_dict()) == keys
    assert flux.pos_embed is embedder
    assert all(processor is processors[name] for name, processor in flux.attn_processors.items())
    assert not flux._forward_pre_hooks
    handle.remove()
    assert torch.equal(run(flux, inputs), before)


def test_removal_leaves_a_later_processor_alone(flux: Any) -> None:
    handle = apply_clear(flux, ClearSpec(3))
    newer = type(copy.deepcopy(handle._swaps[0][2]))()
    flux.transformer_blocks[0].attn.set_processor(newer)
    handle.remove()
    assert flux.transformer_blocks[0].attn.processor is newer


def test_sizes_a_b_a(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3, 2))
    a, b = call_inputs((9, 11)), call_inputs((12, 7), text=8)
    first = run(flux, a)
    run(flux, b)
    assert torch.equal(run(flux, a), first)


def test_transposed_grid_of_the_same_length_gets_its_own_window(flux: Any) -> None:
    inputs = call_inputs((6, 10))
    with apply_clear(flux, ClearSpec(3)):
        wide = run(flux, inputs)
        tall = run(flux, inputs | {"img_ids": grid_ids((10, 6))})
        assert torch.equal(run(flux, inputs), wide)
    assert relative(tall, wide) > 1e-3


def test_two_models_do_not_meet(flux: Any) -> None:
    other = copy.deepcopy(flux)
    inputs = call_inputs((8, 9))
    stock = run(other, inputs)
    apply_clear(flux, ClearSpec(2))
    alone = run(flux, inputs)
    assert torch.equal(run(other, inputs), stock)
    with apply_clear(other, ClearSpec(4, 4), ntk_factor=4.0):
        run(other, inputs)
        assert torch.equal(run(flux, inputs), alone)
    assert torch.equal(run(other, inputs), stock)


def test_threads_each_get_their_own_size(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3))
    calls = [call_inputs((6 + i % 3, 9 - i % 2), seed=i) for i in range(8)]
    one_by_one = [run(flux, inputs) for inputs in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: run(flux, inputs), calls))
    assert all(relative(a, b) < 1e-6 for a, b in zip(together, one_by_one, strict=True))


def test_batch_equals_one_by_one(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3, 4))
    inputs = call_inputs((7, 9), batch=2)
    batched = run(flux, inputs)
    for i in range(2):
        single = {name: value[i : i + 1] if "ids" not in name else value for name, value in inputs.items()}
        assert relative(run(flux, single), batched[i : i + 1]) < 1e-6


def with_references(inputs: dict[str, torch.Tensor], grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    tokens = torch.randn(1, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(5))
    return inputs | {
        "hidden_states": torch.cat([inputs["hidden_states"], tokens], dim=1),
        "img_ids": torch.cat([inputs["img_ids"], grid_ids(grid, index=1)]),
    }


def written_out_mask(grid: tuple[int, int], text: int, reference: int, radius: int) -> torch.Tensor:
    """(L, L) bool: everybody sees everybody, but image tokens see image tokens only within the window."""
    mask = torch.ones(2 * (text + grid[0] * grid[1] + reference,), dtype=torch.bool)
    for a in range(grid[0] * grid[1]):
        for b in range(grid[0] * grid[1]):
            (ya, xa), (yb, xb) = divmod(a, grid[1]), divmod(b, grid[1])
            mask[text + a, text + b] = (ya - yb) ** 2 + (xa - xb) ** 2 < radius**2
    return mask


@pytest.mark.parametrize("reference", [None, (3, 4)], ids=["plain", "kontext"])
@pytest.mark.parametrize(
    ("grid", "text", "radius"),
    [
        pytest.param((6, 5), 5, 2, id="6x5"),
        pytest.param((1, 9), 3, 4, id="one-row"),
        pytest.param((7, 1), 1, 1, id="one-column"),
    ],
)
def test_window_equals_a_mask_given_to_the_stock_model(
    flux: Any, grid: tuple[int, int], text: int, radius: int, reference: tuple[int, int] | None
) -> None:
    inputs = call_inputs(grid, text)
    if reference:
        inputs = with_references(inputs, reference)
    mask = written_out_mask(grid, text, 12 if reference else 0, radius)
    masked = run(flux, inputs | {"joint_attention_kwargs": {"attention_mask": mask}})
    with apply_clear(flux, ClearSpec(radius)):
        assert relative(run(flux, inputs), masked) < 1e-6


def test_auto_recipe_starts_above_8192_tokens(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(FLUX1), "hires_tokens", 50)
    small, large = call_inputs((5, 10)), call_inputs((3, 17))
    with apply_clear(flux, ClearSpec(3), ntk_factor=1.0, proportional_attention="off"):
        plain = run(flux, small)
    with apply_clear(flux, ClearSpec(3), ntk_factor=10.0, proportional_attention="on"):
        hires = run(flux, large)
    apply_clear(flux, ClearSpec(3))
    assert torch.equal(run(flux, small), plain)
    assert torch.equal(run(flux, large), hires)


def test_callers_keywords_are_left_alone(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3))
    mine: dict[str, Any] = {}
    run(flux, call_inputs((5, 5)) | {"joint_attention_kwargs": mine})
    assert mine == {}


def test_positional_call_equals_keywords(flux: Any) -> None:
    apply_clear(flux, ClearSpec(2), ntk_factor=10.0)
    inputs = call_inputs((6, 7))
    order = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    )
    with torch.no_grad():
        positional = flux(*(inputs[name] for name in order), return_dict=False)[0]
    assert torch.equal(positional, run(flux, inputs))


def test_half_precision_ids_are_repaired(flux: Any) -> None:
    # The pipelines cast ids to bfloat16, which cannot tell 256 from 257.
    apply_clear(flux, ClearSpec(2))
    inputs = call_inputs((1, 300))
    assert torch.equal(run(flux, inputs | {"img_ids": inputs["img_ids"].bfloat16()}), run(flux, inputs))


def test_fused_projections(flux: Any) -> None:
    inputs = call_inputs((6, 7))
    with apply_clear(flux, ClearSpec(3)):
        expected = run(flux, inputs)
    flux.fuse_qkv_projections()
    with apply_clear(flux, ClearSpec(3)):
        assert relative(run(flux, inputs), expected) < 1e-6


def test_gradients_reach_the_spatial_weights_and_survive_checkpointing(flux: Any) -> None:
    apply_clear(flux, ClearSpec(2, 2), ntk_factor=10.0)
    inputs = call_inputs((5, 6))
    if Version(diffusers.__version__) < Version("0.35"):
        flux.enable_gradient_checkpointing()
        with pytest.raises(ValueError, match=r"diffusers 0\.35 or later"):
            flux(**inputs)
        return
    gradients = []
    for checkpointing in (False, True):
        flux.train()
        (flux.enable_gradient_checkpointing if checkpointing else flux.disable_gradient_checkpointing)()
        flux.zero_grad()
        flux(**inputs, return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad.clone() for n, p in flux.named_parameters() if n.endswith("spatial_weight")])
    assert len(gradients[0]) == 3
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.norm() > 0
        assert relative(recomputed, plain) < 1e-5


def test_compiled_model_follows_the_size(flux: Any) -> None:
    apply_clear(flux, ClearSpec(3), ntk_factor=10.0)
    calls = [call_inputs(grid) for grid in ((6, 7), (7, 6), (9, 5), (6, 7))]
    expected = [run(flux, inputs) for inputs in calls]
    compiled = torch.compile(flux, backend="eager")
    for inputs, wanted in zip(calls, expected, strict=True):
        assert relative(run(compiled, inputs), wanted) < 1e-6


def test_foreign_embedder_is_kept(flux: Any, caplog: pytest.LogCaptureFixture) -> None:
    class DyPE(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> Any:
            return self.inner(ids * 0.5)

    flux.pos_embed = DyPE(flux.pos_embed)
    inputs = call_inputs((6, 7))
    stock = run(flux, inputs)
    with caplog.at_level(logging.WARNING, logger="clear_core"):
        apply_clear(flux, ClearSpec(PAST_THE_DIAGONAL), ntk_factor=10.0)
    assert relative(run(flux, inputs), stock) < 1e-6
    assert [record.getMessage() for record in caplog.records if "DyPE" in record.getMessage()]


def test_refuses_another_model() -> None:
    with pytest.raises(TypeError, match=r"Linear.*FluxTransformer2DModel"):
        apply_clear(torch.nn.Linear(2, 2), ClearSpec(8))


def test_refuses_a_second_time(flux: Any) -> None:
    apply_clear(flux, ClearSpec(8))
    with pytest.raises(ValueError, match="already on"):
        apply_clear(flux, ClearSpec(8))


def test_refuses_a_foreign_processor(flux: Any) -> None:
    class IPAdapter:
        pass

    flux.transformer_blocks[0].attn.processor = IPAdapter()
    with pytest.raises(ValueError, match="double block 0 attends through IPAdapter"):
        apply_clear(flux, ClearSpec(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"backend": "fast"}, "backend is 'fast'", id="backend"),
        pytest.param({"ntk_factor": -1.0}, "ntk_factor is -1", id="ntk"),
        pytest.param({"proportional_attention": "yes"}, "proportional_attention is 'yes'", id="proportional"),
        pytest.param({"spec": (8, 1)}, r"spec is \(8, 1\)", id="spec"),
    ],
)
def test_refuses_values(flux: Any, arguments: dict[str, Any], message: str) -> None:
    stock = dict(flux.attn_processors)
    with pytest.raises(ValueError, match=message):
        apply_clear(flux, **({"spec": ClearSpec(8)} | arguments))
    assert flux.attn_processors == stock


def spatial(d: int, *blocks: tuple[str, int]) -> dict[tuple[str, int], torch.Tensor]:
    return {block: torch.ones(d, d) for block in blocks}


ALL_BLOCKS = (("double", 0), ("single", 0), ("single", 1))


@pytest.mark.parametrize(
    ("weights", "down_factor", "message"),
    [
        pytest.param(spatial(4, *ALL_BLOCKS[:2]), 4, r"2 weights for 3 blocks, and \('single', 1\)", id="too-few"),
        pytest.param(spatial(4, *ALL_BLOCKS, ("double", 1)), 4, r"and \('double', 1\)", id="too-many"),
        pytest.param(spatial(2, *ALL_BLOCKS), 4, r"spatial_weight has shape \(2, 2\)", id="other-factor"),
        pytest.param(spatial(4, *ALL_BLOCKS), 1, "does not pool", id="no-pooling"),
    ],
)
def test_refuses_spatial_weights(
    flux: Any, weights: dict[tuple[str, int], torch.Tensor], down_factor: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_clear(flux, ClearSpec(8, down_factor), spatial_weights=weights)


def test_refuses_a_mask_and_unordered_tokens(flux: Any) -> None:
    apply_clear(flux, ClearSpec(8))
    inputs = call_inputs((4, 5))
    with pytest.raises(ValueError, match="attention_mask"):
        run(flux, inputs | {"joint_attention_kwargs": {"attention_mask": torch.ones(1)}})
    with pytest.raises(ValueError, match="row-major"):
        run(flux, inputs | {"img_ids": inputs["img_ids"].flip(0)})


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (5, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_read_frame_inverts_grid_ids(grid: tuple[int, int], dtype: torch.dtype) -> None:
    ids = torch.cat([grid_ids(grid, origin=(3, 20)), grid_ids((2, 3), index=1), grid_ids((1, 4), index=2)])
    frame = read_frame(ids.to(dtype))
    assert (frame.grid, frame.reference) == (grid, 10)
    assert torch.equal(frame.exact_ids, ids)


def test_packing_is_the_pipelines_own() -> None:
    latent = torch.randn(2, 4, 6, 10)
    # FluxPipeline needs transformers to be imported; this is its layout, written with other means.
    tokens = torch.nn.functional.unfold(latent, 2, stride=2).transpose(1, 2)
    assert torch.equal(pack_latent(latent), tokens)
    assert torch.equal(unpack_latent(pack_latent(latent), (3, 5)), latent)
    with pytest.raises(ValueError, match="even sides"):
        pack_latent(torch.zeros(1, 4, 5, 6))


def test_denoiser_takes_models_without_guidance() -> None:
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    latent = torch.randn(2, 4, 6, 8)
    with torch.no_grad(), apply_clear(model, ClearSpec(2)):
        out = FluxDenoiser(model, torch.randn(1, 3, 8), torch.randn(1, 8))(latent, 0.5)
    assert out.shape == latent.shape and out.isfinite().all()
