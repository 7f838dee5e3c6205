"""Weights files in a real ComfyUI: damaged ones are rejected, and names find them in sub-folders."""

from __future__ import annotations

from importlib import import_module
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


def texts_about(host, pack, run_node, model) -> tuple[str, str]:
    """CLEAR Inspect's text, and the lines about the weights in CLEAR Upscale's ``info``."""
    info = import_module(f"{pack.__name__}.nodes.host.upscale.info")
    return run_node(host.stock("CLEARInspect"), model=model)[1], "\n".join(info.weight_lines(model))


def used_file(pack, model) -> Path:
    return import_module(f"{pack.__name__}.nodes.host.model.read").clear_of(model).file.path


@pytest.fixture
def second_folder(tmp_path, pack, clear_folder):
    """A second folder of weights, as extra_model_paths.yaml adds it."""
    import folder_paths

    folders = folder_paths.folder_names_and_paths["clear"][0]
    folders.append(str(tmp_path))
    yield tmp_path
    folders.remove(str(tmp_path))
    (clear_folder / "clear_local_6.safetensors").unlink(missing_ok=True)
    folder_paths.filename_list_cache.pop("clear", None)  # The host does not look for folders that are gone.


def test_two_files_of_one_name_are_said_with_their_folders(
    host, golden_flux, clear_node, clear_folder, second_folder, pack, run_node, caplog
):
    for folder in (clear_folder, second_folder):
        (folder / "clear_local_6.safetensors").write_bytes(LOCAL.read_bytes())
    patched = clear_node(golden_flux, weights_name="clear_local_6.safetensors")
    assert used_file(pack, patched) == clear_folder / "clear_local_6.safetensors"
    taken = f"clear_local_6.safetensors is taken from {clear_folder}"
    sentence = f"{taken}; there is another file of this name in {second_folder}."
    inspected, info = texts_about(host, pack, run_node, patched)
    assert sentence in inspected and sentence in info and caplog.text.count(sentence) == 1

    (second_folder / "clear_local_6.safetensors").unlink()
    inspected, info = texts_about(
        host, pack, run_node, clear_node(golden_flux, weights_name="clear_local_6.safetensors")
    )
    assert "is taken from" not in inspected + info and caplog.text.count(sentence) == 1


def test_the_workflows_own_folder_is_preferred(golden_flux, clear_node, clear_folder, second_folder, pack):
    names = ["a/clear_local_6.safetensors", "b/clear_local_6.safetensors", "b/c/clear_local_6.safetensors"]
    for name in names:
        (second_folder / name).parent.mkdir(exist_ok=True)
        (second_folder / name).write_bytes(LOCAL.read_bytes())
    elsewhere = f"{second_folder.name}/b/clear_local_6.safetensors"
    for wanted, found in {
        **{name: name for name in names},
        "old\\b\\clear_local_6.safetensors": names[1],
        "x/c/clear_local_6.safetensors": names[2],
        "clear_local_6.safetensors": names[0],
        elsewhere: names[1],
    }.items():
        assert used_file(pack, clear_node(golden_flux, weights_name=wanted)) == second_folder / found, wanted
    # A link to the same file is no second file.
    (second_folder / "d").mkdir()
    for name in names[1:]:
        (second_folder / name).unlink()
    (second_folder / "d" / "clear_local_6.safetensors").symlink_to(second_folder / names[0])
    files = import_module(f"{pack.__name__}.nodes.host.server.weight_files")
    assert files.namesakes("clear_local_6.safetensors") == ()
