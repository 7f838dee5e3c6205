"""The model that a command names, and settings that this model does not use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec
from clear_core.distill import __main__ as command
from clear_core.distill.checkpoint import weights_of
from clear_core.distill.outputs import save_weights
from clear_core.distill.pair import Pair
from clear_core.integrations.diffusers import apply_clear, load_clear
from tests.support.distillation import samples_for, teacher
from tests.support.tiny_families import RELATIVES, teaching_of


@pytest.mark.parametrize("run", ["train", "evaluate", "generate"])
def test_a_model_that_is_not_here_is_told_with_the_way_to_get_it(
    run: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    name = "somebody/a-model-that-nobody-has"
    (tmp_path / "captions.txt").write_text("a cat")
    arguments = {
        "train": ["train", "--radius", "2", "--data", str(data), "--out", str(tmp_path / "out"), "--held-out", "2"],
        "evaluate": ["evaluate", "--data", str(data)],
        "generate": ["generate", str(tmp_path / "captions.txt"), "--out", str(tmp_path / "out")],
    }[run]
    assert command.main([*arguments, "--model", name]) == 1
    assert f"model is '{name}': here is neither" in (said := capsys.readouterr().err) and "--download" in said


def test_a_quantised_folder_is_refused(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "quantised"
    teacher().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    arguments = ["train", "--model", str(folder), "--radius", "2", "--held-out", "2", "--data", str(data)]
    for more in (["--out", str(tmp_path / "out")], ["--estimate"]):
        assert command.main([*arguments, *more]) == 1
        assert "is quantised (quantization_config in its config.json)" in capsys.readouterr().err


def test_settings_without_an_effect_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """FLUX.2 klein has no input for guidance."""
    model = RELATIVES["FLUX.2"].build(0, guidance_embeds=False)
    model.save_pretrained(tmp_path / "klein")
    teaching = teaching_of("FLUX.2")
    samples_for(tmp_path / "data", teaching.needs(model.config, teaching.guidance))
    arguments = ["train", "--model", str(tmp_path / "klein"), "--data", str(tmp_path / "data"), "--cpu"]
    arguments += ["--dtype", "float32", "--radius", "2", "--held-out", "1", "--out", str(tmp_path / "out")]
    more = ["--steps", "1", "--rank", "500", "--guidance", "7", "--warm-up", "4"]
    assert command.main([*arguments, *more]) == 0
    said = capsys.readouterr().err
    assert "rank is 500, and the model's width 32 is the largest rank: it is used." in said
    assert "guidance is 7, but this model has no guidance: it changes nothing." in said
    assert "the rate rises to 2.5e-05 of 0.0001" in said


@pytest.mark.parametrize("entry", [[None, None], None], ids=["empty", "missing"])
def test_a_pipeline_without_a_vae_draws_no_pictures(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], entry: object
):
    folder = tmp_path / "pipeline"
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    teacher().save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps(index | ({"vae": entry} if entry else {})))
    arguments = ["train", "--model", str(folder), "--radius", "2", "--held-out", "2", "--data", str(data), "--cpu"]
    assert command.main([*arguments, "--out", str(tmp_path / "out"), "--pictures-every", "1"]) == 1
    assert "pictures_every is 1, but pipeline has no VAE to draw with" in capsys.readouterr().err


def test_two_attentions_of_a_block_pool_alike_in_training_and_in_use(tmp_path: Path):
    """SD3.5 Medium's blocks have two, and a file has one pooling weight for each block."""
    relative = RELATIVES["SD3.5 Medium"]
    pair = Pair(relative.build(0), ClearSpec(2, 2))
    rng = torch.Generator().manual_seed(0)
    inputs = relative.call((4, 6))
    with torch.no_grad():
        for parameter in pair.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
        wanted = pair.transformer(**inputs)[0]
        path = tmp_path / "pooled.safetensors"
        save_weights(path, pair, weights_of(pair.trained()), "a test", dtype=torch.float32)
        model = relative.build(0)
        loaded = load_clear(model, path)
        weights = loaded.spatial_weights
        apply_clear(model, loaded.spec, spatial_weights=weights, ntk_factor=1.0, proportional_attention="off")
        torch.testing.assert_close(model(**inputs)[0], wanted, rtol=0, atol=2e-5)
