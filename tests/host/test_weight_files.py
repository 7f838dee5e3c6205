"""Weights files in a real ComfyUI: damaged ones are rejected, and names find them in sub-folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.support_comfy import golden
from tests.host.support_comfy.sampling import conditioning
from tests.support.damaged_files import FILES

SIGMA = 0.6
LOCAL = golden.GOLDEN / "student_7_down1.safetensors"


def prompt() -> list:
    generator = torch.Generator().manual_seed(2)
    return conditioning(torch.randn(1, 9, 32, generator=generator), torch.randn(1, 16, generator=generator))


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 20, 24, generator=torch.Generator().manual_seed(1))


def test_nan_weights_are_refused_and_the_model_still_samples(golden_flux, clear_node, clear_folder, predict):
    tensors = load_file(LOCAL)
    next(iter(tensors.values()))[0] = torch.nan
    save_file(tensors, clear_folder / "clear_local_5.safetensors")
    before = predict(golden_flux, noise(), SIGMA, prompt())
    with pytest.raises(ValueError, match="NaN"):
        clear_node(golden_flux, weights_name="clear_local_5.safetensors")
    assert golden_flux.patches == {}
    assert torch.equal(predict(golden_flux, noise(), SIGMA, prompt()), before)


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_ends_in_one_sentence_and_the_model_still_samples(
    golden_flux, clear_node, clear_folder, predict, case
):
    make, fragment = FILES[case]
    (clear_folder / "clear_local_5.safetensors").write_bytes(make())
    with pytest.raises(ValueError) as error:
        clear_node(golden_flux, weights_name="clear_local_5.safetensors")
    message = str(error.value)
    assert fragment in message and message.endswith(".") and message.isprintable()
    assert golden_flux.patches == {} and golden_flux.wrappers == {}
    patched = clear_node(golden_flux, weights_name="none", radius=5)
    assert predict(patched, noise(), SIGMA, prompt()).isfinite().all()


def test_a_radius_that_nothing_tells_is_asked_for(golden_flux, clear_node, clear_folder):
    (clear_folder / "mine.safetensors").write_bytes(LOCAL.read_bytes())
    with pytest.raises(ValueError, match=r"mine\.safetensors .* set radius"):
        clear_node(golden_flux, weights_name="mine.safetensors")
    clear_node(golden_flux, weights_name="mine.safetensors", radius=5)


def listed_names(host) -> list[str]:
    options = host.stock("CLEARAttention").INPUT_TYPES()["optional"]["weights_name"]
    return options[1]["options"] if isinstance(options[0], str) else options[0]


def test_companions_and_hidden_files_are_never_listed_or_found(host, golden_flux, clear_node, clear_folder):
    """macOS puts a companion beside each file on a foreign drive; hidden folders hold other programs' files."""
    names = ["._clear_local_6.safetensors", ".trash/clear_local_6.safetensors", "flux/._clear_local_6.safetensors"]
    for name in names:
        (clear_folder / name).parent.mkdir(exist_ok=True)
        (clear_folder / name).write_bytes(b"Mac OS X" if "._" in name else LOCAL.read_bytes())
    try:
        assert not [name for name in listed_names(host) if "clear_local_6" in name]
        for name in ("clear_local_6.safetensors", *names):
            with pytest.raises(ValueError, match="which is not installed"):
                clear_node(golden_flux, weights_name=name)
    finally:
        for name in names:
            (clear_folder / name).unlink()
        (clear_folder / ".trash").rmdir()
        (clear_folder / "flux").rmdir()


def test_files_in_sub_folders_are_listed_and_found(host, golden_flux, clear_node, clear_folder, pack):
    (clear_folder / "flux").mkdir(exist_ok=True)
    (clear_folder / "flux" / "clear_local_6.safetensors").write_bytes(LOCAL.read_bytes())
    (clear_folder / "notes.txt").write_text("not a model")
    try:
        listed = listed_names(host)
        assert listed[0] == "none" and str(Path("flux", "clear_local_6.safetensors")) in listed
        assert "notes.txt" not in listed
        for name in ("flux\\clear_local_6.safetensors", "flux/clear_local_6.safetensors", "clear_local_6.safetensors"):
            clear_node(golden_flux, weights_name=name)
    finally:
        (clear_folder / "flux" / "clear_local_6.safetensors").unlink()
        (clear_folder / "flux").rmdir()
