"""Distillation: what is trained, towards what, and that stopping or sharing the work changes nothing."""

from __future__ import annotations

import copy
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
accelerate = pytest.importorskip("accelerate")

from diffusers import FluxTransformer2DModel  # noqa: E402

from clear_core import ClearSpec  # noqa: E402
from clear_core.distill import __main__ as command  # noqa: E402
from clear_core.distill.evaluate import velocity_errors  # noqa: E402
from clear_core.distill.losses import Losses, distillation_losses, taught_blocks  # noqa: E402
from clear_core.distill.prepare import captioned_pictures, fitted, samples_from_teacher  # noqa: E402
from clear_core.distill.samples import Order, SampleFolder, noise_at as place_noise, write_sample  # noqa: E402
from clear_core.distill.student import load_weights, make_student, save_weights, trained_set  # noqa: E402
from clear_core.distill.train import TrainConfig as Plan, check_config as check_plan, distil, set_up  # noqa: E402
from clear_core.weights import read_clear_file  # noqa: E402

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = dict(
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=8,
    pooled_projection_dim=8,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)


def teacher(seed: int = 0) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FluxTransformer2DModel(**CONFIG).eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve samples in two shapes."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        shape = (4, 8, 12) if number % 3 else (4, 12, 8)
        write_sample(
            folder,
            number,
            torch.randn(shape, generator=generator),
            torch.randn(3, 8, generator=generator),
            torch.randn(8, generator=generator),
        )
    return folder


def run(model: FluxTransformer2DModel, data: Path, plan: Plan, out: Path, **options: object) -> dict[str, torch.Tensor]:
    """A whole distillation in this process; the student's state dict."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulation)
    distillation = set_up(copy.deepcopy(model), SampleFolder(data), plan, accelerator)
    distil(distillation, out, **options)
    return distillation.inner.state_dict()


@pytest.mark.parametrize("count, blocks", [(38, [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]), (3, [1]), (1, [0]), (0, [])])
def test_every_fourth_single_block_is_taught(count: int, blocks: list[int]):
    assert taught_blocks(count) == blocks


def test_weights_of_the_terms():
    total = Losses(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)).total
    assert total == 1 + 5 + 50


@pytest.mark.parametrize("down_factor", [1, 2])
def test_only_image_projections_train(data: Path, tmp_path: Path, down_factor: int):
    model = teacher()
    plan = Plan(radius=2, down_factor=down_factor, steps=2, batch=2, rate=1e-2)
    state = run(model, data, plan, tmp_path / "out")
    before = model.state_dict()
    changed = {name for name, tensor in state.items() if name not in before or not torch.equal(tensor, before[name])}
    streams = {
        "transformer_blocks.0": ("to_q", "to_k", "to_v", "to_out.0"),
        "single_transformer_blocks.0": ("to_q", "to_k", "to_v"),
        "single_transformer_blocks.1": ("to_q", "to_k", "to_v"),
    }
    expected = {
        f"{block}.attn.{name}.{end}" for block, names in streams.items() for name in names for end in ("weight", "bias")
    }
    if down_factor > 1:
        expected |= {f"{block}.attn.processor.spatial_weight" for block in streams}
    assert changed == expected == set(trained_set(model, plan.spec))


def test_frozen_weights_are_shared_and_teacher_is_not_moved():
    model = teacher()
    student = make_student(model, ClearSpec(2))
    mine, theirs = dict(student.named_parameters()), dict(model.named_parameters())
    trained = set(trained_set(model, ClearSpec(2)))
    for name, parameter in mine.items():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) == (name not in trained), name
        assert parameter.requires_grad == (name in trained) and not theirs[name].requires_grad


def test_bfloat16_teacher_keeps_its_dtype():
    student = make_student(teacher().bfloat16(), ClearSpec(2, 2))
    trained = set(trained_set(student, ClearSpec(2, 2)))
    assert {p.dtype for n, p in student.named_parameters() if n in trained} == {torch.float32}
    assert {p.dtype for n, p in student.named_parameters() if n not in trained} == {torch.bfloat16}


def test_a_window_past_the_diagonal_has_nothing_to_learn(data: Path):
    model = teacher()
    batch = SampleFolder(data).batch([1, 2], [0, 1], 0, 0)
    losses = distillation_losses(make_student(model, ClearSpec(99)), model, batch, 3.5)
    assert losses.distill < 1e-10 and losses.attention < 1e-10
    narrow = distillation_losses(make_student(model, ClearSpec(1)), model, batch, 3.5)
    assert narrow.distill > 1e-6 and narrow.attention > 1e-6


def test_loss_terms_by_hand(data: Path):
    model = teacher()
    student = make_student(model, ClearSpec(2))
    batch = SampleFolder(data).batch([1, 2], [0, 1], 0, 0)
    kept = []
    hooks = [
        net.single_transformer_blocks[1].attn.register_forward_hook(lambda m, a, out: kept.append(out))
        for net in (model, student)
    ]
    losses = distillation_losses(student, model, batch, 3.5)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(losses.attention, (kept[1] - kept[0]).square().mean())
    assert losses.flow > losses.distill, "a random teacher is nearer to its student than to the truth"


def test_noise_belongs_to_the_place_in_the_global_batch(data: Path):
    samples = SampleFolder(data)
    whole = samples.batch([1, 2, 4, 5], range(4), 7, 3)
    half = samples.batch([4, 5], range(2, 4), 7, 3)
    assert torch.equal(whole.noise[2:], half.noise) and torch.equal(whole.sigma[2:], half.sigma)
    assert not torch.equal(whole.noise[0], whole.noise[1])
    levels = torch.stack([place_noise((1,), 0, step, 0)[1] for step in range(2000)])
    assert 0 < levels.min() and levels.max() <= 1
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


def test_empty_folder_and_foreign_file_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no samples"):
        SampleFolder(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="x.safetensors is not a sample"):
        SampleFolder(tmp_path)


@pytest.mark.parametrize("optimizer, accumulation", [("adamw", 1), ("adamw", 2), ("prodigy", 1)])
def test_killed_and_resumed_is_uninterrupted(data: Path, tmp_path: Path, optimizer: str, accumulation: int):
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    model = teacher()
    plan = Plan(
        radius=2,
        down_factor=2,
        steps=6,
        batch=2,
        accumulation=accumulation,
        optimizer=optimizer,
        rate=1.0 if optimizer == "prodigy" else 1e-3,
        warm_up=3,
    )
    whole = run(model, data, plan, tmp_path / "whole", save_every=2)
    fatal = random.randrange(1, plan.steps)

    def kill(step: int, losses: dict[str, float]) -> None:
        if step == fatal:
            # What a process leaves that dies while it saves.
            (out / "checkpoint.part").mkdir(exist_ok=True)
            (out / "checkpoint.part" / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(model, data, plan, out, save_every=2, on_step=kill)
    resumed = run(model, data, plan, out, save_every=2)
    assert not torch.equal(
        whole["single_transformer_blocks.0.attn.to_q.weight"],
        model.state_dict()["single_transformer_blocks.0.attn.to_q.weight"],
    )
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name}, killed after step {fatal}"
    assert [path.name for path in out.iterdir()] == ["checkpoint-0000006"]


def test_accumulated_passes_equal_one_large_batch(data: Path, tmp_path: Path):
    model = teacher()
    one = run(model, data, Plan(radius=2, steps=2, batch=4, rate=1e-3), tmp_path / "one")
    two = run(model, data, Plan(radius=2, steps=2, batch=2, accumulation=2, rate=1e-3), tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


def free_port() -> str:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return str(open_socket.getsockname()[1])


def test_two_processes_equal_one_with_twice_the_batch(data: Path, tmp_path: Path):
    teacher().save_pretrained(tmp_path / "teacher")

    def launch(name: str, processes: int, batch: int) -> dict[str, torch.Tensor]:
        launcher = (
            []
            if processes == 1
            else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
        )
        arguments = [
            "-m",
            "clear_core.distill",
            "train",
            "--model",
            str(tmp_path / "teacher"),
            "--data",
            str(data),
            "--out",
            str(tmp_path / name),
            "--radius",
            "2",
            "--down-factor",
            "2",
            "--steps",
            "3",
            "--batch",
            str(batch),
            "--rate",
            "1e-3",
            "--dtype",
            "float32",
            "--cpu",
            "--held-out",
            "2",
        ]
        result = subprocess.run(
            [sys.executable, *launcher, *arguments],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert "on 2 held-out samples" in result.stdout
        return load_file(tmp_path / name / "checkpoint-0000003" / "model.safetensors")

    one, two = launch("one", 1, 4), launch("two", 2, 2)
    before = teacher().state_dict()
    assert one.keys() == two.keys() == set(trained_set(teacher(), ClearSpec(2, 2)))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)
    moved = one["transformer_blocks.0.attn.to_q.weight"] - before["transformer_blocks.0.attn.to_q.weight"]
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("down_factor", [1, 2])
def test_weights_round_trip_in_the_published_format(tmp_path: Path, down_factor: int):
    spec = ClearSpec(3, down_factor)
    model = teacher()
    student = make_student(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in trained_set(model, spec):
            student.get_parameter(name).add_(torch.randn(student.get_parameter(name).shape, generator=generator))
    path = tmp_path / "mine.safetensors"
    save_weights(path, student.state_dict(), student, spec, "a test", dtype=torch.float32)
    file = read_clear_file(path)
    assert (file.radius, file.down_factor, file.source) == (3, down_factor, "a test")
    again = make_student(teacher(), spec)
    load_weights(again, path)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_held_out_error_is_zero_for_the_teacher_itself(data: Path):
    model = teacher()
    samples = SampleFolder(data, first=-2)
    assert len(samples) == 2 and samples.paths[-1].name == "0000011.safetensors"
    same = velocity_errors(make_student(model, ClearSpec(99)), model, samples, guidance=3.5)
    window = velocity_errors(make_student(model, ClearSpec(1)), model, samples, guidance=3.5)
    assert max(same.values()) < 1e-10 and min(window.values()) > 1e-7
    assert window == velocity_errors(make_student(model, ClearSpec(1)), model, samples, guidance=3.5)


def test_another_plan_does_not_go_on_in_an_old_folder(tmp_path: Path):
    check_plan(tmp_path, Plan(radius=8, steps=10), 1, 5)
    check_plan(tmp_path, Plan(radius=8, steps=20), 1, 5)
    with pytest.raises(ValueError, match="begun with radius 8, and now it is 16"):
        check_plan(tmp_path, Plan(radius=16, steps=20), 1, 5)


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(steps=0), "steps is 0"),
        (dict(batch=0), "batch is 0"),
        (dict(optimizer="sgd"), "optimizer is 'sgd'"),
        (dict(rate=0.0), "rate is 0.0"),
    ],
    ids=lambda v: str(v),
)
def test_bad_plans_are_refused_in_words(values: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        Plan(**{"radius": 8, **values})


def test_bad_radius_on_the_command_line_is_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status = command.main(["train", "--model", "x", "--data", str(data), "--out", str(tmp_path / "o"), "--radius", "0"])
    assert status == 1 and "radius is 0; expected an integer of at least 1" in capsys.readouterr().err


def test_help_needs_neither_accelerate_nor_diffusers():
    code = (
        "import sys; sys.modules.update(accelerate=None, diffusers=None, tqdm=None); "
        "from clear_core.distill.__main__ import main; main(['train', '--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0 and "--radius" in result.stdout


class FakePipeline:
    """Stands in for a diffusers pipeline: remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []

    def encode_prompt(self, prompt: str, prompt_2: None) -> tuple[torch.Tensor, torch.Tensor, None]:
        return torch.full((1, 3, 8), float(len(prompt))), torch.ones(1, 8), None

    def __call__(self, **options: object) -> object:
        self.calls.append(options)
        tokens = torch.arange(6 * 16.0).reshape(1, 6, 16)
        return type("Output", (), {"images": tokens})


def test_generated_samples_go_on_where_they_stopped(tmp_path: Path):
    pipeline = FakePipeline()
    options = dict(size=(32, 48), steps=4, guidance=2.5, seed=9)
    made = samples_from_teacher(pipeline, ["a", "bb", "ccc"], tmp_path, **options)
    next(made)
    assert len(list(samples_from_teacher(pipeline, ["a", "bb", "ccc"], tmp_path, **options))) == 3
    assert [call["generator"].initial_seed() for call in pipeline.calls] == [9, 10, 11]
    samples = SampleFolder(tmp_path)
    latents, prompt_embeds, _ = samples.load([0, 1, 2])
    assert latents.shape == (3, 4, 4, 6) and prompt_embeds[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "size, expected", [((100, 100), (64, 64)), ((200, 100), (48, 96)), ((1000, 30), (16, 368))], ids=str
)
def test_pictures_are_fitted_to_the_area(size: tuple[int, int], expected: tuple[int, int]):
    image = pytest.importorskip("PIL.Image")
    picture = image.linear_gradient("L").resize(size)
    tensor = fitted(picture, 64)
    assert tensor.shape == (1, 3, *expected)
    assert -1 <= tensor.min() < -0.9 and 0.9 < tensor.max() <= 1


def test_captions_lie_beside_pictures(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    for name in ("b.png", "a.jpg"):
        image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("a cat\n")
    assert [(path.name, text) for path, text in captioned_pictures(tmp_path)] == [("a.jpg", ""), ("b.png", "a cat")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        captioned_pictures(tmp_path / "empty")
