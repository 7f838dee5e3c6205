"""A VAE that does not fit the model ends a run in one sentence before anything is enlarged or encoded."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch

from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.upscaling import prompt

BLACK = torch.zeros(1, 32, 32, 3)


@pytest.fixture
def begun(pack, monkeypatch) -> list[str]:
    """Gets an entry for each phase of a stage that begins."""
    stage_module = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage")
    entries: list[str] = []
    for name in ("enlarge", "encode", "denoise"):
        original = getattr(stage_module, name)

        def watched(*args: Any, name: str = name, original: Any = original) -> Any:
            entries.append(name)
            return original(*args)

        monkeypatch.setattr(stage_module, name, watched)
    return entries


@pytest.fixture
def vaes(vae):
    """``vaes(kind)`` is a VAE of the host for another model, with random weights."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV
    from comfy.taesd.taesd import Decoder, Encoder

    def named(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": weight for name, weight in module.state_dict().items()}

    def make(kind: str) -> Any:
        if kind == "4 channels":
            return comfy.sd.VAE(sd=named("taesd_encoder.", Encoder(4)) | named("taesd_decoder.", Decoder(4)))
        if kind == "video":
            return comfy.sd.VAE(sd=TAEHV(latent_channels=16, latent_format=None).state_dict())
        if kind == "no weights":
            return comfy.sd.VAE(sd={})
        other = copy.copy(vae)
        other.latent_channels, other.downscale_ratio = (128, 16) if kind == "128 channels" else (16, 16)
        return other

    return make


def assert_one_sentence(refused: Any, words: list[str]) -> None:
    sentence = str(refused.value)
    assert all(word in sentence for word in [*words, "VAE"]), sentence
    assert "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("4 channels", ["4 channels", "16 channels"]),
        ("128 channels", ["128 channels", "16 channels"]),
        ("16 px", ["16 x 16 px"]),
        ("video", ["videos"]),
        ("no weights", ["empty"]),
    ],
)
@pytest.mark.parametrize("image", [picture(32, 32), BLACK], ids=["picture", "black"])
def test_a_vae_that_does_not_fit_is_refused_before_any_work(upscale, vaes, tiny_flux, begun, image, kind, words):
    with pytest.raises(ValueError) as refused:
        upscale(image, tiny_flux(), vae=vaes(kind))
    assert_one_sentence(refused, words)
    assert begun == []


class Silent:
    """Another pack's VAE, which says nothing about itself."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.shape)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 1, 8, 8), (1, 16, 4, 4)], ids=str)
def test_a_vae_that_says_nothing_is_refused_before_the_first_step(upscale, tiny_flux, begun, shape):
    with pytest.raises(ValueError) as refused:
        upscale(BLACK, tiny_flux(), vae=Silent(shape))
    assert_one_sentence(refused, [str(shape), "(1, 16, 8, 8)"])
    assert begun == ["enlarge", "encode"]


@pytest.mark.parametrize("socket", ["positive", "negative"])
def test_a_reference_of_another_vae_is_refused_too(upscale, tiny_flux, begun, socket):
    for shape in ((1, 4, 8, 8), (1, 16, 1, 8, 8)):
        other = prompt()
        other[0][1]["reference_latents"] = [torch.zeros(1, 16, 8, 8), torch.zeros(shape)]
        with pytest.raises(ValueError) as refused:
            upscale(picture(32, 32), tiny_flux(), **{socket: other})
        assert_one_sentence(refused, [socket, str(shape), "16"])
    assert begun == []


@pytest.mark.parametrize("kind", ["4 channels", "none"])
def test_a_controlnet_that_encodes_its_hint_needs_a_vae_that_fits(upscale, vaes, tiny_flux, load, begun, kind):
    first, second = load("union"), load("union")
    hint = torch.rand(1, 3, 64, 64)
    first.set_cond_hint(hint, vae=None if kind == "none" else vaes(kind))
    second.set_cond_hint(hint, vae=vaes("16 channels"))
    second.vae.downscale_ratio = 8
    second.set_previous_controlnet(first)
    other = prompt()
    other[0][1]["control"] = second
    with pytest.raises(ValueError) as refused:
        upscale(picture(32, 32), tiny_flux(), positive=other)
    assert_one_sentence(refused, ["ControlNet", "positive", "no vae" if kind == "none" else "4 channels"])
    assert begun == []


def test_the_vaes_tiles_are_those_that_were_chosen(upscale, vae, tiny_flux, monkeypatch):
    """Encoding and decoding get the chosen side; one that is as long as the picture means the whole picture."""
    asked: list[tuple[str, Any]] = []
    for name in ("encode", "encode_tiled", "decode", "decode_tiled"):
        original = getattr(vae, name)

        def watched(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            asked.append((name, options.get("tile_x")))
            return original(*args, **options)

        monkeypatch.setattr(vae, name, watched)
    whole, _, info = upscale(picture(64, 96), tiny_flux(), steps=1, vae_tile_size=192)
    assert asked == [("encode", None), ("decode", None)] and "VAE whole" in info
    asked.clear()
    tiled, _, info = upscale(picture(64, 96), tiny_flux(), steps=1, vae_tile_size=128)
    assert asked == [("encode_tiled", 128), ("decode_tiled", 128 // 8)] and "VAE in tiles of 128 px" in info
    assert tiled.shape == whole.shape == (1, 128, 192, 3)
    with pytest.raises(ValueError, match="vae_tile_size is 32; expected 0 .* or 64 px at least"):
        upscale(picture(64, 96), tiny_flux(), steps=1, vae_tile_size=32)
