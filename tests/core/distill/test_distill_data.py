"""Samples of a distillation: their order, their noise, and where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clear_core.distill.inputs import sources_of
from clear_core.distill.order import Order, remarks
from clear_core.distill.prepare import Drawing, fitted, samples_from_teacher
from clear_core.distill.samples import SampleFolder, noise_at

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from tests.support.distillation import teacher


def test_noise_belongs_to_the_place_in_the_global_batch(data: Path):
    samples = SampleFolder(data)
    whole = samples.batch([1, 2, 4, 5], range(4), 7, 3)
    half = samples.batch([4, 5], range(2, 4), 7, 3)
    assert torch.equal(whole.noise[2:], half.noise) and torch.equal(whole.sigma[2:], half.sigma)
    assert not torch.equal(whole.noise[0], whole.noise[1])
    levels = torch.stack([noise_at((1,), 0, step, 0)[1] for step in range(2000)])
    assert levels.min() > 0 and levels.max() <= 1
    assert abs(levels.mean() - 0.5) < 0.03 and abs(levels.var() - 1 / 12) < 0.01


@pytest.mark.parametrize("size", [1, 3, 5, 20])
def test_an_epoch_visits_every_sample_in_pure_batches(size: int):
    shapes = ["a"] * 7 + ["b"] * 4
    order = Order(shapes, size, seed=1)
    epoch = [order[step] for step in range(order.per_epoch)]
    assert {number for batch in epoch for number in batch} == set(range(11))
    assert all(len(batch) == size and len({shapes[n] for n in batch}) == 1 for batch in epoch)
    following = [order[step] for step in range(order.per_epoch, 2 * order.per_epoch)]
    assert following != epoch and [order[step] for step in range(order.per_epoch)] == epoch


def test_all_processes_get_equal_shapes(data: Path):
    """As the training shares a global batch out: one that waits for another with more tokens wastes its card."""
    samples = SampleFolder(data)
    processes, batch, accumulation = 2, 2, 2
    order = Order(samples.shapes, processes * batch * accumulation, seed=3)
    for step in range(2 * order.per_epoch):
        for turn in range(accumulation):
            shares = [order[step][(turn * processes + rank) * batch :][:batch] for rank in range(processes)]
            found = {tuple(samples.batch(share, range(batch), 0, step).latents.shape) for share in shares}
            assert len(found) == 1 and all(len(share) == batch for share in shares)


def test_a_shape_with_fewer_samples_than_a_batch_is_told():
    assert remarks(Order(["wide"] * 8 + ["tall"] * 4, 4, seed=0)) == []
    (told,) = remarks(Order(["wide"] * 8 + ["tall"] * 3 + ["square"], 4, seed=0))
    assert "has 4 samples of one shape" in told and "(3 of tall, 1 of square)" in told and "wide" not in told
    (told,) = remarks(Order(list("abcdefg"), 2, seed=0))
    assert "1 of d and 3 shapes more" in told


def test_empty_folder_and_foreign_file_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no samples"):
        SampleFolder(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a sample"):
        SampleFolder(tmp_path)


def test_companions_of_macos_are_neither_samples_nor_pictures(data: Path, tmp_path: Path):
    """They end like the file beside which they lie, and hold none of its content."""
    before = SampleFolder(data).paths
    (data / "._0000000.safetensors").write_bytes(b"Mac OS X")
    assert SampleFolder(data).paths == before
    for name in ("cat.png", "._cat.png", "cat.txt", "._cat.txt", "._cat.json", ".DS_Store", ".hidden.png"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._cat.png").write_bytes(b"\0\5\26\7")
    (found,) = sources_of(tmp_path)
    assert (found.path.name, [path.name for path in found.captions]) == ("cat.png", ["cat.txt"])


class FakePipeline:
    """Stands in for a diffusers pipeline: remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []
        self.transformer = teacher()

    def encode_prompt(self, prompt: str, prompt_2: None) -> tuple[torch.Tensor, torch.Tensor, None]:
        return torch.full((1, 3, 8), float(len(prompt))), torch.ones(1, 8), None

    def __call__(self, **options: object) -> object:
        self.calls.append(options)
        tokens = torch.arange(6 * 16.0).reshape(1, 6, 16)
        return type("Output", (), {"images": tokens})


def test_generated_samples_go_on_where_they_stopped(tmp_path: Path):
    pipeline = FakePipeline()
    drawing = Drawing((32, 48), steps=4, guidance=2.5, seed=9)
    made = samples_from_teacher(pipeline, ["a", "bb", "ccc"], tmp_path, drawing)
    next(made)
    assert len(list(samples_from_teacher(pipeline, ["a", "bb", "ccc"], tmp_path, drawing))) == 3
    assert [call["generator"].initial_seed() for call in pipeline.calls] == [9, 10, 11]
    samples = SampleFolder(tmp_path)
    parts, mask = samples.load([0, 1, 2])
    latents, prompt_embeds = parts["latents"], parts["prompt_embeds"]
    assert mask is None and latents.shape == (3, 4, 4, 6) and prompt_embeds[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "size, expected", [((100, 100), (64, 64)), ((200, 100), (48, 96)), ((1000, 30), (16, 368))], ids=str
)
def test_pictures_are_fitted_to_the_area(size: tuple[int, int], expected: tuple[int, int]):
    image = pytest.importorskip("PIL.Image")
    picture = image.linear_gradient("L").resize(size)
    tensor = fitted(picture, 64)
    assert tensor.shape == (1, 3, *expected)
    assert -1 <= tensor.min() < -0.9 and 0.9 < tensor.max() <= 1
