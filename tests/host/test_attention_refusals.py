"""CLEARAttention in a real ComfyUI: inputs that it rejects, and old or foreign spellings that it accepts."""

from __future__ import annotations

import pytest
import torch

from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.sampling import run_node

SIGMA = 0.6


@pytest.mark.parametrize(
    "widgets, named",
    [
        ({"weights_name": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"proportional_attention": "maybe"}, "maybe"),
        ({"ntk_factor": -1.0}, "-1"),
        ({"radius": -3}, "-3"),
    ],
    ids=lambda value: str(value),
)
def test_bad_values_are_named(tiny_flux, clear_node, widgets, named):
    with pytest.raises(ValueError, match=named):
        clear_node(tiny_flux(), **widgets)


def test_unknown_backend_is_refused_before_sampling(tiny_flux, clear_node):
    with pytest.raises(ValueError, match="backend is 'warp'; expected one of auto, dense, gather"):
        clear_node(tiny_flux(), backend="warp")


def test_other_models_are_refused_by_name(host, clear_node, tiny_flux):
    model = tiny_flux()
    for change, named in (({"image_model": "ideogram4"}, "ideogram4"), ({"patch_size": 1}, "patch size is 1")):
        other = tiny_flux()
        other.model.model_config.unet_config = {**other.model.model_config.unet_config, **change}
        with pytest.raises(ValueError, match=named):
            clear_node(other)
        assert other.wrappers == {} and other.object_patches == {}
    model.model.diffusion_model.double_blocks = None
    del model.model.diffusion_model.double_blocks
    with pytest.raises(ValueError, match="Nunchaku"):
        clear_node(model)


def test_weights_of_another_width_are_refused_and_the_model_still_samples(host, clear_node, tiny_flux, predict):
    model, x = tiny_flux(), noise(12, 14)
    before = predict(model, x, SIGMA, prompt())
    name = host.folder_paths.get_filename_list("clear")[0]
    with pytest.raises(ValueError, match="width 64"):
        clear_node(model, weights_name=name)
    assert model.patches == {}
    assert torch.equal(predict(model, x, SIGMA, prompt()), before)


def test_names_from_another_machine_find_the_file(host, pack):
    names = host.folder_paths.get_filename_list("clear")
    validate = host.stock("CLEARAttention").validate_inputs
    for name in names:
        assert validate(weights_name="sub\\folder\\" + name) is True
    answer = validate(weights_name="clear_local_99.safetensors")
    assert "clear_local_99.safetensors" in answer and "clear" in answer


def test_it_runs_without_optional_inputs_in_the_executors_way(host, tiny_flux, pack):
    model = tiny_flux()
    (patched,) = run_node(host.stock("CLEARAttention"), model=model)
    assert patched is not model and patched.model is model.model
