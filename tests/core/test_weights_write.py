"""Saving, deltas, LoRAs and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clear_core.weights import ClearFileError, ClearHeader, read_clear_file, save_clear_file
from clear_core.weights.__main__ import main
from clear_core.weights.delta import save_delta
from clear_core.weights.lora import save_lora
from clear_core.weights.writer import write_safetensors

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
BASE = GOLDEN / "base.safetensors"
WIDTH = 64


@pytest.fixture
def local(tmp_path) -> Path:
    path = tmp_path / "clear_local_8.safetensors"
    path.write_bytes((GOLDEN / "student_7_down1.safetensors").read_bytes())
    return path


@pytest.fixture
def pooled(tmp_path) -> Path:
    path = tmp_path / "clear_local_8_down_4.safetensors"
    path.write_bytes((GOLDEN / "student_8_down4.safetensors").read_bytes())
    return path


def base_as_comfyui(prefix: str) -> dict[str, torch.Tensor]:
    """The golden base as a checkpoint in Black Forest Labs' layout: fused, with MLP rows and other tensors."""
    state, out = load_file(BASE), {f"{prefix}img_in.weight": torch.zeros(3, 5)}
    for end in ("weight", "bias"):
        double = "transformer_blocks.0.attn."
        out[f"{prefix}double_blocks.0.img_attn.qkv.{end}"] = torch.cat([state[f"{double}to_{c}.{end}"] for c in "qkv"])
        out[f"{prefix}double_blocks.0.txt_attn.qkv.{end}"] = torch.cat(
            [state[f"{double}add_{c}_proj.{end}"] for c in "qkv"]
        )
        out[f"{prefix}double_blocks.0.img_attn.proj.{end}"] = state[f"{double}to_out.0.{end}"]
        for index in range(2):
            single = f"single_transformer_blocks.{index}."
            out[f"{prefix}single_blocks.{index}.linear1.{end}"] = torch.cat(
                [state[f"{single}attn.to_{c}.{end}"] for c in "qkv"] + [state[f"{single}proj_mlp.{end}"]]
            )
    return out


def shards(state: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    keys = sorted(state)
    parts = [keys[::2], keys[1::2], []]
    paths = [folder / f"shard-{index}.safetensors" for index in range(3)]
    for path, part in zip(paths, parts, strict=True):
        save_file({key: state[key] for key in part}, path)
    return paths


@pytest.mark.parametrize("form", ["diffusers", "diffusers_shards", "comfyui", "comfyui_prefixed"])
@pytest.mark.parametrize("student", ["local", "pooled"])
def test_delta_and_base_add_up_to_the_student(tmp_path, form, student, request):
    clear = request.getfixturevalue(student)
    if form == "diffusers":
        base = [BASE]
    elif form == "diffusers_shards":
        base = shards(load_file(BASE), tmp_path)
    else:
        base = [tmp_path / "flux1-dev.safetensors"]
        save_file(base_as_comfyui("model.diffusion_model." * form.endswith("prefixed")), base[0])

    file = save_delta(base, clear, tmp_path / "delta.safetensors")

    pools = student == "pooled"
    assert (file.kind, file.radius, file.down_factor) == ("delta", 8, 4 if pools else 1)
    assert file.source.startswith(f"{clear.name} minus ")
    # The published tensors and the base's own, straight from their files: nothing of the code under test.
    wanted, dev = load_file(clear), load_file(BASE)
    written = load_file(file.path)
    assert set(written) == set(wanted)
    for name, tensor in written.items():
        expected = wanted[name] if "spatial" in name else wanted[name] - dev[name]
        assert torch.equal(tensor, expected), name
        if "spatial" not in name:
            torch.testing.assert_close(dev[name] + tensor, wanted[name], rtol=0, atol=1e-7)


def test_delta_in_bf16_restores_the_student_to_bf16_rounding(tmp_path, local):
    student, dev = load_file(local), load_file(BASE)
    # A distilled weight is its base and a little more; so is this one.
    student = {key: dev[key].bfloat16() + (0.05 * (tensor - dev[key])).bfloat16() for key, tensor in student.items()}
    save_file(student, local)
    save_file({key: tensor.bfloat16() for key, tensor in dev.items()}, tmp_path / "dev.safetensors")

    file = save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "delta.safetensors")

    assert file.dtypes == {torch.bfloat16}
    for name, tensor in file.tensors().items():
        restored = (dev[name].bfloat16().float() + tensor.float()).bfloat16()
        torch.testing.assert_close(restored, student[name], rtol=2**-7, atol=0)


def test_delta_is_stored_in_the_wider_dtype(tmp_path, local):
    save_file({key: tensor.half() for key, tensor in load_file(local).items()}, local)
    save_file({key: tensor.bfloat16() for key, tensor in load_file(BASE).items()}, tmp_path / "dev.safetensors")
    file = save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "delta.safetensors")
    assert file.dtypes == {torch.float32}


def shrunk(state):
    return {key: tensor[:32, :32] if tensor.ndim == 2 else tensor[:32] for key, tensor in state.items()}


@pytest.mark.parametrize(
    "change, fragment",
    [
        (lambda s: {k: t for k, t in s.items() if "single" not in k}, r"12 of its 20 trained tensors are not there"),
        (lambda s: {"lm_head.weight": torch.zeros(2, 2)}, r"20 of its 20 trained tensors are not there"),
        (shrunk, r"is of another size than the CLEAR file.*is 32.*, expected 64"),
        (lambda s: {k: t.to(torch.float8_e4m3fn) for k, t in s.items()}, r"is stored as F8_E4M3"),
        (lambda s: {k: torch.full_like(t, torch.nan) for k, t in s.items()}, r"is NaN or infinite in"),
    ],
    ids=["half_a_model", "other_model", "other_width", "fp8", "nan"],
)
@pytest.mark.parametrize("rank", [None, 4], ids=["delta", "lora"])
def test_a_base_that_does_not_fit_leaves_no_file(tmp_path, local, rank, change, fragment):
    save_file({k: t.contiguous() for k, t in change(load_file(BASE)).items()}, tmp_path / "dev.safetensors")
    before = set(os.listdir(tmp_path))
    with pytest.raises(ClearFileError, match=fragment):
        if rank:
            save_lora([tmp_path / "dev.safetensors"], local, tmp_path / "out.safetensors", rank)
        else:
            save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "out.safetensors")
    assert set(os.listdir(tmp_path)) == before


def test_linear1_without_mlp_rows_is_no_less_a_base(tmp_path, local):
    state = base_as_comfyui("")
    for index in range(2):
        for end in ("weight", "bias"):
            key = f"single_blocks.{index}.linear1.{end}"
            state[key] = state[key][: 3 * WIDTH].contiguous()
    save_file(state, tmp_path / "dev.safetensors")
    save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "a.safetensors")
    save_delta([BASE], local, tmp_path / "b.safetensors")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_delta_of_a_delta_is_refused(tmp_path, local):
    save_delta([BASE], local, tmp_path / "delta.safetensors")
    with pytest.raises(ClearFileError, match="is a delta already"):
        save_delta([BASE], tmp_path / "delta.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize("rank", [1, 7, 40, 64])
def test_lora_is_the_best_of_its_rank_and_says_what_it_keeps(tmp_path, local, rank):
    out = tmp_path / "lora.safetensors"
    energy = save_lora([BASE], local, out, rank)

    lora, student, dev = load_file(out), load_file(local), load_file(BASE)
    layers = [key.removesuffix(".weight") for key in student if key.endswith(".weight")]
    assert set(lora) == {f"transformer.{layer}.lora_{end}.weight" for layer in layers for end in "AB"}
    lost, best, total = 0.0, 0.0, 0.0
    for layer in layers:
        delta = (student[f"{layer}.weight"] - dev[f"{layer}.weight"]).double()
        up, down = lora[f"transformer.{layer}.lora_B.weight"], lora[f"transformer.{layer}.lora_A.weight"]
        assert up.shape == (WIDTH, rank) and down.shape == (rank, WIDTH)
        lost += float((delta - up.double() @ down.double()).square().sum())
        best += float(torch.linalg.svdvals(delta)[rank:].square().sum())
        total += float(delta.square().sum())
    assert lost == pytest.approx(best, rel=2e-2, abs=1e-6)
    assert energy.kept[rank] == pytest.approx(1 - lost / total, abs=1e-5)
    assert max(energy.kept) == rank and sorted(energy.kept.values()) == list(energy.kept.values())
    biases = sum(float((student[key] - dev[key]).double().square().sum()) for key in student if key.endswith("bias"))
    assert energy.biases == pytest.approx(biases / (biases + total), rel=1e-6)


def test_lora_leaves_the_random_numbers_of_others_alone(tmp_path, local):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_lora([BASE], local, tmp_path / "lora.safetensors", 4)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_lora_rank_out_of_range(tmp_path, local, rank):
    with pytest.raises(ClearFileError, match=f"the rank is {rank}; expected 1 to 64"):
        save_lora([BASE], local, tmp_path / "lora.safetensors", rank)


def test_lora_of_a_pooled_variant_is_refused(tmp_path, pooled):
    with pytest.raises(ClearFileError, match="pools 4 x 4, which a LoRA cannot hold"):
        save_lora([BASE], pooled, tmp_path / "lora.safetensors", 4)
    assert not (tmp_path / "lora.safetensors").exists()


def test_save_is_the_published_format_with_a_header(tmp_path, pooled):
    source = read_clear_file(pooled)
    out = tmp_path / "mine.safetensors"
    file = save_clear_file(out, source.tensors(), source.spatial_weights(), ClearHeader(12, 4, source="10K pictures"))
    assert (file.radius, file.down_factor, file.kind, file.source) == (12, 4, "replace", "10K pictures")
    with safe_open(out, "pt") as handle:
        assert handle.metadata() == {
            "format": "pt",
            "clear.kind": "replace",
            "clear.radius": "12",
            "clear.down_factor": "4",
            "clear.source": "10K pictures",
        }
    mine, published = load_file(out), load_file(pooled)
    assert mine.keys() == published.keys()
    assert all(torch.equal(mine[key], published[key]) and mine[key].shape == published[key].shape for key in mine)


@pytest.mark.parametrize(
    "change, arguments, fragment",
    [
        (lambda t, w: t.pop("transformer_blocks.0.attn.to_k.bias"), {}, "1 tensors are missing or not CLEAR's"),
        (lambda t, w: t.update({"x_embedder.weight": torch.zeros(1)}), {}, "1 tensors are missing or not CLEAR's"),
        (lambda t, w: t.clear(), {}, "down factor 4 needs 0 spatial weights, 3 are given"),
        (lambda t, w: t["transformer_blocks.0.attn.to_k.bias"].fill_(torch.inf), {}, "to_k.bias has NaN or infinite"),
        (
            lambda t, w: t["transformer_blocks.0.attn.to_k.bias"].fill_(7e4),
            {"dtype": torch.float16},
            "to_k.bias has NaN",
        ),
        (
            lambda t, w: t.update({"transformer_blocks.0.attn.to_k.weight": torch.zeros(64, 32)}),
            {},
            "64 x 32, expected 64",
        ),
        (lambda t, w: w.pop(("single", 1)), {}, "needs 3 spatial weights, 2 are given"),
        (lambda t, w: w.update({("single", 1): torch.zeros(2, 2)}), {}, "is 2 x 2, expected 4 x 4"),
        (lambda t, w: None, {"down_factor": 1}, "down factor 1 needs 0 spatial weights, 3 are given"),
        (lambda t, w: None, {"radius": 0}, "clear.radius = '0'; expected a whole number"),
        (lambda t, w: None, {"kind": "other"}, "clear.kind = 'other'; expected replace or delta"),
    ],
    ids=[
        "missing",
        "foreign",
        "nothing",
        "inf",
        "inf_in_fp16",
        "shape",
        "spatial_missing",
        "spatial_shape",
        "down_factor",
        "radius",
        "kind",
    ],
)
def test_save_refuses_and_leaves_no_file(tmp_path, pooled, change, arguments, fragment):
    file = read_clear_file(pooled)
    tensors, spatial = {key: tensor.clone() for key, tensor in file.tensors().items()}, file.spatial_weights()
    change(tensors, spatial)
    header = ClearHeader(**{"radius": 8, "down_factor": 4} | {k: v for k, v in arguments.items() if k != "dtype"})
    before = os.listdir(tmp_path)
    with pytest.raises(ClearFileError, match=fragment):
        save_clear_file(tmp_path / "out.safetensors", tensors, spatial, header, dtype=arguments.get("dtype"))
    assert os.listdir(tmp_path) == before


def test_an_existing_file_is_replaced_only_by_force_and_only_when_whole(tmp_path, local):
    file, old = read_clear_file(local), b"somebody's work"
    out = tmp_path / "out.safetensors"
    out.write_bytes(old)
    with pytest.raises(ClearFileError, match="out.safetensors exists already"):
        save_clear_file(out, file.tensors(), {}, ClearHeader(8))
    with pytest.raises(KeyboardInterrupt):

        def stop(count, total):
            raise KeyboardInterrupt

        save_clear_file(out, file.tensors(), {}, ClearHeader(8), force=True, on_tensor=stop)
    assert out.read_bytes() == old and sorted(os.listdir(tmp_path)) == [local.name, out.name]
    save_clear_file(out, file.tensors(), {}, ClearHeader(8), force=True)
    read_clear_file(out).check_finite()


def test_a_file_can_be_rewritten_in_place_from_its_own_tensors(tmp_path, local):
    before = load_file(local)
    save_clear_file(local, read_clear_file(local).tensors(), {}, ClearHeader(9), force=True)
    after = load_file(local)
    assert read_clear_file(local).radius == 9 and all(torch.equal(after[key], before[key]) for key in before)


def test_writing_where_there_is_no_folder_is_one_sentence(tmp_path, local):
    with pytest.raises(ClearFileError, match="out.safetensors cannot be written: No such file or directory"):
        save_clear_file(tmp_path / "no" / "out.safetensors", read_clear_file(local).tensors(), {}, ClearHeader(8))


def test_written_offsets_are_aligned_and_read_by_safetensors(tmp_path):
    plan = {
        "b": (torch.float8_e4m3fn, (3,)),
        "a": (torch.float32, (1, 3)),
        "c": (torch.bfloat16, (5,)),
        "empty": (torch.float64, (0,)),
        "single": (torch.float64, ()),
    }
    made = {
        key: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype) for key, (dtype, shape) in plan.items()
    }
    write_safetensors(tmp_path / "x.safetensors", plan, made.__getitem__, {"é": "ü\n"})
    read = load_file(tmp_path / "x.safetensors")
    for key, tensor in made.items():
        assert read[key].dtype == tensor.dtype and read[key].shape == tensor.shape
        assert torch.equal(read[key].double(), tensor.double())
    with safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == {"é": "ü\n"}


def cli(*arguments: object, capsys) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_cli_list_names_every_release_and_the_licence(capsys):
    code, out, _ = cli("list", capsys=capsys)
    assert code == 0
    for stem in ("clear_local_8", "clear_local_16", "clear_local_32", "clear_local_8_down_4", "clear_local_16_down_4"):
        assert f"{stem} " in out
    assert out.count("3.59 GB") == 5 and "Non-Commercial" in out


def test_cli_inspect(local, pooled, capsys):
    code, out, _ = cli("inspect", pooled, "--finite", capsys=capsys)
    assert code == 0 and "down factor  4" in out and "width 64, 1 double and 2 single" in out and "every value" in out
    local.write_bytes(local.read_bytes()[:-1])
    code, out, err = cli("inspect", local, capsys=capsys)
    assert (code, out) == (1, "") and err.startswith("clear_local_8.safetensors is truncated") and err.count("\n") == 1


def test_cli_save_takes_the_trained_tensors_out_of_a_whole_model(tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    code, said, _ = cli("save", "--state", BASE, "--radius", 8, "--dtype", "bf16", "--out", out, capsys=capsys)
    assert code == 0 and "left out, not CLEAR's: 60 tensors" in said
    file, base = read_clear_file(out), load_file(BASE)
    assert (file.radius, file.down_factor, file.dtypes, file.source) == (8, 1, {torch.bfloat16}, "base.safetensors")
    assert all(torch.equal(tensor, base[name].bfloat16()) for name, tensor in file.tensors().items())


def test_cli_save_of_half_a_state_is_one_sentence(tmp_path, capsys):
    save_file({"transformer_blocks.0.attn.to_q.bias": torch.zeros(4)}, tmp_path / "half.safetensors")
    state, out = tmp_path / "half.safetensors", tmp_path / "out.safetensors"
    code, _, err = cli("save", "--state", state, "--radius", 8, "--out", out, capsys=capsys)
    assert code == 1 and "half.safetensors is incomplete: 7 trained tensors are missing" in err
    assert os.listdir(tmp_path) == ["half.safetensors"]


def test_cli_save_keeps_the_spatial_weights(tmp_path, pooled, capsys):
    assert cli("save", "--state", pooled, "--radius", 8, "--out", tmp_path / "mine.safetensors", capsys=capsys)[0] == 0
    ours, theirs = (read_clear_file(path).spatial_weights() for path in (tmp_path / "mine.safetensors", pooled))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[block], theirs[block]) for block in ours)


def test_cli_delta_and_lora(tmp_path, local, capsys):
    out = tmp_path / "delta.safetensors"
    assert cli("delta", "--base", BASE, "--clear", local, "--out", out, capsys=capsys)[0] == 0
    assert read_clear_file(out).kind == "delta"
    code, _, err = cli("delta", "--base", BASE, "--clear", local, "--out", out, capsys=capsys)
    assert code == 1 and "exists already" in err
    code, said, _ = cli("delta", "--base", BASE, "--clear", local, "--out", out, "--lora", 4, "--force", capsys=capsys)
    assert code == 0 and "rank     4 keeps" in said and "have no place in a LoRA" in said
    assert len(load_file(out)) == 20


@pytest.mark.parametrize("name", ["../clear_local_8", "clear_local_64", "Huage001/CLEAR"])
def test_cli_get_takes_catalogue_names_only(tmp_path, name, capsys):
    code, _, err = cli("get", name, "--to", tmp_path, capsys=capsys)
    assert code == 1 and "is not in the catalogue" in err and not os.listdir(tmp_path)


def test_cli_runs_as_a_module():
    command = [sys.executable, "-m", "clear_core.weights", "list"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0 and "clear_local_32" in answer.stdout


def test_delta_keeps_a_few_tensors_in_memory(tmp_path):
    """30 MB of student and base, and at most some of its 1 MB tensors at once (file pages do not count)."""
    shapes = {f"single_transformer_blocks.{n}.attn.to_{c}": 512 for n in range(20) for c in "qkv"}
    state = {f"{name}.weight": torch.zeros(width, width, dtype=torch.bfloat16) for name, width in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(width, dtype=torch.bfloat16) for name, width in shapes.items()}
    for name in ("clear_local_8", "base"):
        save_file(state, tmp_path / f"{name}.safetensors")
    script = """
import sys
from pathlib import Path
from clear_core.weights.delta import save_delta
def anonymous():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024
folder = Path(sys.argv[1])
base, clear = [folder / "base.safetensors"], folder / "clear_local_8.safetensors"
save_delta(base, clear, folder / "warm.safetensors")
before, peak = anonymous(), 0
def look(count, total):
    global peak
    peak = max(peak, anonymous())
save_delta(base, clear, folder / "out.safetensors", on_tensor=look)
print(peak - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    answer = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) < 8e6


def test_the_command_runs_by_its_path_in_an_isolated_python(tmp_path):
    """As in ComfyUI's portable version for Windows, whose Python takes no package from the working directory."""
    file = ROOT / "clear_core" / "weights" / "__main__.py"
    done = subprocess.run([sys.executable, "-I", str(file), "list"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "clear_local_16" in done.stdout
