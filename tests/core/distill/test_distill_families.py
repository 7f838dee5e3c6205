"""Five families against their stock pipelines: what is called, what is encoded, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.distill.families import Text
from clear_core.distill.losses import predict
from clear_core.distill.pair import Pair
from clear_core.distill.samples import SampleFolder, write_sample
from clear_core.distill.validation import Validation, draw
from tests.support.tiny_families import CHANNELS, KINDS, pipeline, teaching_of, text_parts, transformer, vae

SIZE, SEED = (64, 96), 3


def noise_of(kind: str) -> torch.Tensor:
    """The noise that the stock pipeline starts from."""
    cells = (1, 4 * CHANNELS, 4, 6) if kind == "FLUX.2" else (1, CHANNELS, 8, 12)
    return torch.randn(cells, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_step_of_the_pipeline_is_one_call_of_ours(kind: str):
    """From pure noise one Euler step goes to ``noise - flow``."""
    teaching, pipe, parts = teaching_of(kind), pipeline(kind), text_parts(kind)
    # Qwen-Image's pipeline also rescales what two calls give; ComfyUI does not.
    guidance = 1.0 if kind == "Qwen-Image" else 3.0
    drawn = teaching.generate(pipe, parts, SIZE, 1, guidance, SEED)
    pair = Pair(pipe.transformer, ClearSpec(99))
    noise = noise_of(kind)
    text = {name: value[None] for name, value in parts.items()}
    with pair.teacher() as model:
        scale = teaching.input_guidance(model.config, guidance)
        plain = teaching.call(model, noise, torch.ones(1), Text(text["prompt_embeds"], text.get("pooled")), scale)
        flow = plain
        if teaching.takes_two_calls(guidance):
            empty = Text(text["negative_embeds"], text.get("negative_pooled"))
            other = teaching.call(model, noise, torch.ones(1), empty, scale)
            flow = other + guidance * (plain - other)
    torch.testing.assert_close(drawn, (noise - flow)[0], rtol=0, atol=2e-5)
    assert (flow - noise).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pictures_are_those_of_the_pipeline(kind: str):
    teaching, pipe, parts = teaching_of(kind), pipeline(kind), text_parts(kind)
    drawn = teaching.generate(pipe, parts, SIZE, 2, 1.0, SEED)
    kept: list[Any] = []
    call = type(pipe).__call__

    def as_pictures(self: Any, **options: Any) -> Any:
        kept.append(call(self, **options | {"output_type": "pt"}).images)
        return call(self, **options)

    try:
        type(pipe).__call__ = as_pictures
        teaching.generate(pipe, parts, SIZE, 2, 1.0, SEED)
    finally:
        type(pipe).__call__ = call
    ours = teaching.picture_of(pipe.vae, drawn[None]).clamp(0, 1)
    theirs = kept[0] if isinstance(kept[0], torch.Tensor) else torch.stack(list(kept[0]))
    torch.testing.assert_close(ours, theirs.reshape(ours.shape).float(), rtol=0, atol=1e-4)
    assert ours.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_picture_comes_back_from_its_latents(kind: str):
    teaching, pipe = teaching_of(kind), pipeline(kind)
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = teaching.latents_of(pipe, picture, SEED)
    assert latents.shape == noise_of(kind).shape[1:] and latents.dtype == torch.float32
    is_video = kind == "Qwen-Image"
    encoded = pipe.vae.encode(picture.unsqueeze(2) if is_video else picture).latent_dist
    drawn = encoded.sample(torch.Generator().manual_seed(SEED))
    stock = pipe.vae.decode(drawn).sample / 2 + 0.5
    stock = stock[:, :, 0] if is_video else stock
    torch.testing.assert_close(teaching.picture_of(pipe.vae, latents[None]), stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_other_lengths_share_a_batch(kind: str, tmp_path: Path):
    """Shorter texts are filled up and masked: each item gives what it gives alone."""
    teaching = teaching_of(kind)
    pair = Pair(transformer(kind), ClearSpec(2))
    tokens = (5, 5) if kind in ("FLUX.1", "FLUX.2", "SD3.5 Large") else (5, 3)
    for index, count in enumerate(tokens):
        parts = text_parts(kind, count, seed=index) | {
            name: value for name, value in text_parts(kind).items() if name.startswith("negative")
        }
        write_sample(tmp_path, index, noise_of(kind)[0] * (index + 1), **parts)
    samples = SampleFolder(tmp_path)
    with torch.no_grad():
        both = predict(pair.transformer, pair, samples.batch([0, 1], [0, 1], 0, 0), teaching.guidance)
        for index in range(2):
            alone = predict(pair.transformer, pair, samples.batch([index], [index], 0, 0), teaching.guidance)
            torch.testing.assert_close(both.guided[index], alone.guided[0], rtol=0, atol=2e-5)
    assert (len(set(tokens)) > 1) == (samples.batch([0, 1], [0, 1], 0, 0).text_mask is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_draws_student_and_teacher(kind: str, tmp_path: Path):
    pair = Pair(transformer(kind), ClearSpec(1))
    write_sample(tmp_path, 0, noise_of(kind)[0], **text_parts(kind))
    samples = SampleFolder(tmp_path)
    validation = Validation(pair, samples, vae(kind), tmp_path / "pictures", 1.0)
    names = [path.name for path in validation.run(7, torch.device("cpu"), write=True)]
    assert names == ["teacher-0.png", "step-0000007-0.png"]
    assert [path.name for path in validation.run(8, torch.device("cpu"), write=True)] == ["step-0000008-0.png"]
    batch = samples.batch([0], [0], 1, 0)
    with pair.teacher():
        dense = draw(pair, batch, 1.0, steps=2)
    assert (draw(pair, batch, 1.0, steps=2) - dense).abs().max() > 1e-4
