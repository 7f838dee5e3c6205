"""What families have beside their order of tokens: masks, scales, exact positions, segments of a call, refusals."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.families import FAMILIES, TinyFamily
from tests.host.support_comfy.family_oracle import denoised, oracle
from tests.host.support_comfy.sampling import relative_error, run_node

pytestmark = pytest.mark.slow  # The fast set has a whole frame of each kind, and windows of each family.

CLOSE = 1e-5


@pytest.fixture
def family(request, host) -> TinyFamily:
    found = FAMILIES[request.param]
    if not found.kind.is_known:
        pytest.skip(f"this ComfyUI does not know {request.param}")
    return found


def said(log: Recorder) -> list[str]:
    return [line for line in log.messages() if "CLEAR" in line and "training-free" not in line]


def text_mask(*kept: int, tokens: int = 7) -> torch.Tensor:
    return torch.tensor([[1 if index < each else 0 for index in range(tokens)] for each in kept])


@pytest.mark.parametrize("family", ["Qwen-Image", "HunyuanImage 2.1"], indirect=True)
def test_masked_text_is_cut_off_and_takes_no_slower_path(family, host, pack, clear_node, monkeypatch):
    if family is FAMILIES["Qwen-Image"] and host.version.startswith("0.9."):
        pytest.skip("this ComfyUI does not hand Qwen-Image's mask to its attention")
    model, x = family.kind.build(), family.noise((7, 9))
    positive = family.prompt(attention_mask=text_mask(4))
    with oracle(family, model, x, 3) as expected:
        wanted = denoised(expected, x, positive)
    bias = import_module(f"{pack.__name__}.clear_core.attention").AttentionBias
    monkeypatch.setattr(bias, "of", lambda *_: pytest.fail("the mask became a bias"))
    found = denoised(clear_node(model, radius=3), x, positive)
    assert relative_error(found, wanted) < CLOSE
    assert relative_error(denoised(clear_node(model, radius=3), x, family.prompt()), wanted) > 1e-4


@pytest.mark.parametrize("family", ["Qwen-Image"], indirect=True)
def test_prompts_of_different_lengths_in_one_batch_keep_their_masks(family, clear_node):
    model, x = family.kind.build(), family.noise((7, 9), batch=2)
    prompts = family.prompt(attention_mask=text_mask(4)), family.prompt(seed=5, attention_mask=text_mask(6))
    with oracle(family, model, x, 3) as expected:
        wanted = denoised(expected, x, *prompts)
    assert relative_error(denoised(clear_node(model, radius=3), x, *prompts), wanted) < CLOSE


@pytest.mark.parametrize("family", ["SD3.5", "HiDream-I1", "Wan"], indirect=True)
def test_the_scale_counts_text_and_image(family, clear_node):
    """Also where the text stands after the image, or comes by cross-attention; that attention keeps its own scale."""
    model, x = family.kind.build(), family.noise((7, 9))
    counted = 63 + {"SD3.5": 7, "HiDream-I1": 7 + 5 + 5, "Wan": 0}[next(n for n, f in FAMILIES.items() if f is family)]
    base = {"SD3": 4096 + 333, "HiDream": 4096 + 384, "WAN21_T2V": 3600}[family.kind.supported]
    scale = math.sqrt(math.log(counted, base))
    with oracle(family, model, x, 3, scale=scale) as expected:
        wanted = denoised(expected, x, family.prompt())
    found = denoised(clear_node(model, radius=3, proportional_attention="on"), x, family.prompt())
    assert relative_error(found, wanted) < CLOSE


@pytest.mark.parametrize("family", ["Kandinsky 5 Image", "Wan", "Z-Image"], indirect=True)
def test_text_as_long_as_the_picture_is_not_taken_for_it(family, clear_node):
    """Cross-attention and refiners then have the picture's shapes."""
    model, x = family.kind.build(), family.noise((8, 8))
    positive = family.prompt(tokens=64)
    with oracle(family, model, x, 3) as expected:
        wanted = denoised(expected, x, positive)
    assert relative_error(denoised(clear_node(model, radius=3), x, positive), wanted) < CLOSE


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "SD3.5"], indirect=True)
def test_a_stretched_base_is_the_models_with_another_theta(family, clear_node):
    """The oracle's model has it in its embedder from the beginning."""
    model, x = family.kind.build(), family.noise((7, 9))
    found = denoised(clear_node(model, radius=3, ntk_factor=7.0), x, family.prompt())
    other = family.kind.build()
    inner = other.model.diffusion_model
    name = next(name for name in ("pe_embedder", "rope_embedder_3d", "rope_embedder") if hasattr(inner, name))
    embedder = getattr(inner, name)
    embedder.theta = embedder.theta * 7.0
    with oracle(family, other, x, 3) as expected:
        wanted = denoised(expected, x, family.prompt())
    assert relative_error(found, wanted) < CLOSE


def test_sd3_says_that_its_table_is_not_stretched(host, clear_node):
    family = FAMILIES["SD3.5"]
    model, x = family.kind.build(), family.noise((5, 7))
    with Recorder() as log:
        found = denoised(clear_node(model, radius=100, ntk_factor=7.0), x, family.prompt())
    assert relative_error(found, denoised(model, x, family.prompt())) < CLOSE
    lines = said(log)
    assert len(lines) == 1 and "table" in lines[0] and "ntk_factor 7" in lines[0]


@pytest.mark.parametrize(
    "family", ["Chroma Radiance", "Qwen-Image", "HunyuanImage 2.1", "Kandinsky 5 Image", "Wan"], indirect=True
)
def test_positions_past_256_tokens_are_exact_in_bfloat16(family, clear_node):
    """Where the host counts in the latent's dtype, which merges neighbours there."""
    from comfy.ldm.flux.layers import EmbedND

    kind = family.kind
    model = kind.build(dtype=torch.bfloat16)
    seen: dict[str, torch.Tensor] = {}
    x = family.noise((300, 2))
    for name, each in (("stock", model), ("clear", clear_node(model, radius=3))):
        own = EmbedND.forward

        def forward(self, ids, own=own, name=name):
            if ids.shape[1] >= 600:
                seen.setdefault(name, ids)
            return own(self, ids)

        EmbedND.forward = forward
        try:
            denoised(each, x, family.prompt())
        finally:
            EmbedND.forward = own
    row = 0 if kind.supported == "HunyuanImage21" else 1

    def rows(ids: torch.Tensor) -> torch.Tensor:
        text = family.before(ids.shape[1], 600, 0)
        return ids[0, text : text + 600, row].unflatten(0, (300, 2))[:, 0].float()

    steps = rows(seen["clear"]).diff()
    assert len(rows(seen["clear"]).unique()) == 300 and torch.equal(steps, steps[:1].expand(299))
    assert len(rows(seen["stock"]).unique()) < 300


@pytest.mark.parametrize("family", ["Qwen-Image", "Wan"], indirect=True)
def test_several_frames_are_refused_and_stay_the_hosts(family, clear_node):
    model, x = family.kind.build(), family.noise((5, 7), frames=3)
    stock = denoised(model, x, family.prompt())
    with Recorder() as log:
        found = denoised(clear_node(model, radius=3), x, family.prompt())
    assert torch.equal(found, stock)
    lines = said(log)
    assert len(lines) == 1 and "3 frames" in lines[0] and "single pictures" in lines[0]


@pytest.mark.parametrize("family", ["HiDream-I1"], indirect=True)
def test_a_source_beside_the_target_is_refused_and_stays_the_hosts(family, clear_node):
    """HiDream-E1."""
    model, x = family.kind.build(), family.noise((5, 7))
    positive = family.prompt(concat_latent_image=family.noise((5, 7), seed=8))
    stock = denoised(model, x, positive)
    with Recorder() as log:
        found = denoised(clear_node(model, radius=3), x, positive)
    assert torch.equal(found, stock)
    lines = said(log)
    assert len(lines) == 1 and "HiDream-E1" in lines[0] and "cut off" in lines[0]


def test_wan_with_other_pictures_is_refused(host, clear_node):
    family = FAMILIES["Wan"]
    model = family.kind.build()
    model.model.diffusion_model.__class__ = type("VaceWanModel", (type(model.model.diffusion_model),), {})
    with pytest.raises(ValueError, match="^the model is a VaceWanModel, which attends to more than one picture"):
        clear_node(model)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "FLUX.1"], indirect=True)
def test_weights_of_flux_are_refused_by_name(family, clear_node):
    model = family.kind.build()
    with pytest.raises(
        ValueError, match=r"was distilled for FLUX\.1, but the model is .*none for windows on its own weights"
    ):
        clear_node(model, weights_name="tiny/clear_local_4_down_2.safetensors")
    assert model.patches == {} and model.wrappers == {}


@pytest.mark.parametrize("family", ["FLUX.2 klein"], indirect=True)
def test_calls_without_the_queries_of_references_have_windows(family, host, clear_node):
    """The stock node FluxKVCache leaves them out from the second step on."""
    if not hasattr(import_module("comfy_extras.nodes_flux"), "FluxKVCache"):
        pytest.skip("this ComfyUI has no FluxKVCache")
    model, x = family.kind.build(), family.noise((7, 9))
    positive = family.prompt(references=((4, 5),))
    with Recorder() as log:
        cached = run_node(host.stock("FluxKVCache"), model=clear_node(model, radius=3))[0]
        first, second = (denoised(cached, x, positive) for _ in range(2))
    assert said(log) == []
    cached = run_node(host.stock("FluxKVCache"), model=model)[0]
    stock = [denoised(cached, x, positive) for _ in range(2)]
    assert relative_error(first, stock[0]) > 1e-4
    # References keep what they brought at the first step, and nothing else is left out.
    whole = run_node(host.stock("FluxKVCache"), model=clear_node(model, radius=100))[0]
    assert relative_error(denoised(whole, x, positive), stock[0]) < CLOSE
    assert relative_error(denoised(whole, x, positive), stock[1]) < CLOSE
    assert relative_error(second, stock[1]) > 1e-4


@pytest.mark.parametrize("order", ["image rows", "text and image rows"])
def test_segments_of_a_call_are_rows_of_the_whole(host, pack, host_part, order):
    """Queries of some parts of a sequence attend as they do among all."""
    from tests.host.support_comfy.family_oracle import circles

    module, layout = host_part("model.segments"), host_part("model.attention_override").SequenceLayout
    form = host_part("model.attention_override").JOINT
    text, image, references, grid = 5, 63, 4, (7, 9)
    generator = torch.Generator().manual_seed(0)
    length = text + image + references
    q, k, v = (torch.randn(1, 2, length, 32, generator=generator) for _ in range(3))
    part = slice(text, text + image) if order == "image rows" else slice(0, text + image)
    told = layout(text, grid, references if order == "image rows" else 0)
    whole, found, rows = module.completed(q[:, :, part], k, told, references, form)
    assert found == layout(text, grid, references)
    core = import_module(f"{pack.__name__}.clear_core")
    spec = core.ClearSpec(3)
    out = core.clear_attention(whole, k, v, grid=grid, spec=spec, reference_tokens=references, backend="gather")
    scores = (q.double() @ k.double().transpose(-1, -2) * 32**-0.5).masked_fill(
        ~circles(grid, text, length, 3), float("-inf")
    )
    wanted = (scores.softmax(-1) @ v.double())[:, :, part]
    assert relative_error(out[:, :, rows], wanted) < CLOSE
    assert module.completed(q[:, :, :3], k, told, references, form) is None
