"""The trained comparison: equal conditions for all rows, a run that resumes, and what its record and tables say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("diffusers")

from clear_core import SequenceLayout
from clear_core.distill.losses import distillation_losses
from clear_core.distill.pair import Pair
from demo.experiments.__main__ import main
from demo.experiments.baselines.attention import Attention
from demo.experiments.baselines.registry import KINDS, Kind
from demo.experiments.baselines.windows import Windows
from demo.experiments.comparison import plans, run, students
from demo.experiments.comparison.command import RECORD
from demo.experiments.comparison.plans import FULL, QUICK, ROWS, Row
from demo.experiments.comparison.ranks import PAPER, correlation, own_ranks, paper_ranks, ranks
from demo.experiments.comparison.record import make_record
from demo.experiments.comparison.run import BegunError, Folder, jobs
from demo.experiments.comparison.students import DivergedError, flow_loss, settings, student_of, train
from demo.experiments.comparison.table import figures_table, order_table, tables, trials_table
from demo.experiments.measure import judge
from demo.experiments.record_file import NO_RECORD, lines_of
from demo.experiments.train import make_samples
from demo.tiny_flux.model import GUIDANCE
from demo.tiny_flux.weights import load_tiny_flux, model_fingerprint

PAIR = (Row("CLEAR"), Row("CLEAR", True))
TINY = replace(QUICK, rates=(1e-3,))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples"), 6, [(64, 64)])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Folder:
    """A folder with all figures of two rows, made without a stop."""
    folder = Folder(tmp_path_factory.mktemp("whole"), TINY)
    for _, make in jobs(folder, PAIR):
        make()
    return folder


@pytest.fixture(scope="module")
def whole(made) -> dict[str, Any]:
    """Its record."""
    return make_record(made, PAIR)


def seen(row: Row, samples, rate: float, seed: int) -> list[tuple[Tensor, ...]]:
    """Everything that reaches the loss of a row in three steps of two samples."""
    student, found = student_of(load_tiny_flux(), QUICK.attention(row.kind), row.distilled), []

    def watched(batch):
        found.append((batch.latents, batch.prompt_embeds, batch.pooled, batch.noise, batch.sigma))
        return student.loss(batch)

    train(replace(student, loss=watched), samples, settings(3, 2, rate, seed))
    return found


def test_all_rows_see_equal_samples_noise_and_levels(samples):
    first = seen(Row("CLEAR"), samples, 1e-4, 0)
    for row, rate in ((Row("linear"), 1e-3), (Row("CLEAR pooled", True), 1e-4)):
        for mine, theirs in zip(seen(row, samples, rate, 0), first, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), row.name


def test_seeds_differ_in_order_noise_and_levels(samples):
    one, two = (seen(Row("Swin"), samples, 1e-4, seed) for seed in (0, 1))
    for part, name in ((0, "order"), (3, "noise"), (4, "level")):
        assert any(not torch.equal(a[part], b[part]) for a, b in zip(one, two, strict=True)), name
    # One pass over the six samples in both: the order differs, and what is seen does not.
    total = [torch.cat([batch[0] for batch in each]).sum((1, 2, 3)).sort().values for each in (one, two)]
    torch.testing.assert_close(*total)


def test_a_distilled_row_is_trained_as_clear_core_trains_it(samples, monkeypatch):
    pytest.importorskip("accelerate")
    from accelerate import Accelerator

    from clear_core.distill.set_up import set_up

    attention = QUICK.attention("CLEAR pooled")
    assert isinstance(attention, Windows)
    config = settings(3, 2, 1e-3, 5)
    mine = student_of(load_tiny_flux(), attention, True)
    train(mine, samples, config)
    own = replace(config, radius=attention.spec.radius, down_factor=attention.spec.down_factor)
    theirs = set_up(load_tiny_flux(), samples, own, Accelerator(cpu=True))
    # It is in the precision of the model, which is in 16 bits there and in float32 here.
    monkeypatch.setattr(type(theirs), "autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
    for _ in range(3):
        theirs.run_step()
    start = Pair(load_tiny_flux(), attention.spec).trained()
    for name, weight in theirs.pair.trained().items():
        assert not torch.equal(weight, start[name]), name
        torch.testing.assert_close(mine.trained[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["CLEAR", "CLEAR pooled"])
def test_both_ways_of_training_windows_begin_alike(kind, samples):
    """The same model, windows and trained numbers: only the loss differs."""
    attention = QUICK.attention(kind)
    assert isinstance(attention, Windows)
    plain, taught = (student_of(load_tiny_flux(), attention, distilled) for distilled in (False, True))
    counts = [sum(weight.numel() for weight in each.trained.values()) for each in (plain, taught)]
    assert counts[0] == counts[1]
    batch = samples.batch([0, 1], [0, 1], 0, 0)
    losses = distillation_losses(Pair(load_tiny_flux(), attention.spec), batch, GUIDANCE)
    torch.testing.assert_close(plain.loss(batch), losses.flow, rtol=1e-5, atol=0)
    torch.testing.assert_close(taught.loss(batch), losses.total, rtol=1e-5, atol=0)
    assert losses.distill > 0 and losses.attention > 0


def test_only_windows_can_be_distilled():
    with pytest.raises(ValueError, match=r"Swin 2 x 2 cannot be distilled; expected CLEAR, with or without pooled"):
        student_of(load_tiny_flux(), QUICK.attention("Swin"), True)


def test_the_dense_model_has_no_error(tmp_path):
    folder = Folder(tmp_path, TINY)
    quality = judge(folder.bench, student_of(load_tiny_flux(), KINDS["dense"].paper, False).model)
    assert quality.mean_mse < 1e-9 and quality.found == folder.bench.found == folder.dense()["found"]
    assert (quality.ssim, quality.layout) == pytest.approx((1, 1), abs=1e-5) and quality.psnr > 70


def test_a_run_that_was_cut_off_gives_the_same_record(tmp_path, whole, monkeypatch):
    folder, trained = Folder(tmp_path, TINY), students.train

    def cut_off(*arguments):
        if len(list(tmp_path.glob("*.json"))) == 6:
            raise KeyboardInterrupt
        trained(*arguments)

    monkeypatch.setattr(run, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        for _, make in jobs(folder, PAIR):
            make()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json") if file.name != run.BEGUN}
    assert len(kept) == 5
    monkeypatch.setattr(run, "train", trained)
    assert make_record(Folder(tmp_path, TINY), PAIR) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_the_jobs_are_all_that_a_record_needs(made, whole, monkeypatch):
    for name in ("_made", "_trial"):
        monkeypatch.setattr(made, name, None)
    assert make_record(made, PAIR) == whole


def test_training_changes_every_row_and_seed(whole):
    for row in whole["rows"]:
        means = [row["before"]["mean"], *(after["mean"] for after in row["after"])]
        assert len(set(means)) == 3 and min(means) > 0


def test_a_folder_of_another_model_or_extent_is_refused(tmp_path, monkeypatch):
    Folder(tmp_path, TINY)
    with pytest.raises(BegunError, match=r"was begun with steps 2, and now it is 3; choose another folder by --out\."):
        Folder(tmp_path, replace(TINY, steps=3))
    monkeypatch.setattr(run, "model_fingerprint", lambda model: "other")
    with pytest.raises(BegunError, match=r"was begun with model [0-9a-f]{64}, and now it is other"):
        Folder(tmp_path, TINY)


@dataclass(frozen=True)
class Shuffled(Attention):
    """A planted fault: keys and values of the image do not belong together."""

    @property
    def name(self) -> str:
        return "shuffled"

    def attend(self, q, k, v, layout: SequenceLayout, block: int, weight):
        order = torch.randperm(k.shape[2], generator=torch.Generator().manual_seed(block))
        return F.scaled_dot_product_attention(q, k[:, :, order], v)

    def pairs(self, layout: SequenceLayout, block: int = 0) -> int:
        return layout.length**2


def test_an_attention_with_a_planted_fault_comes_last(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "shuffled", Kind(lambda _: Shuffled()))
    monkeypatch.setitem(PAPER, "shuffled", PAPER["CLEAR"])
    extent = replace(TINY, side=128, window=4, seeds=(0,))
    record = make_record(Folder(tmp_path, extent), (Row("shuffled"), Row("CLEAR")))
    assert order_table(record).splitlines()[-1].startswith("| shuffled |")
    shared = [row for row in record["rows"] if row["name"] in PAPER]
    for measure in ("error", "PSNR"):
        assert own_ranks(shared)[measure] == [2, 1], measure


def test_a_rate_is_chosen_by_the_smallest_error_of_those_that_ended(tmp_path, monkeypatch):
    folder = Folder(tmp_path, replace(TINY, rates=(1.0, 2.0, 3.0)))
    errors: dict[float, float | None] = {1.0: 0.3, 2.0: 0.2, 3.0: None}
    monkeypatch.setattr(folder, "figures", lambda asked: {"mean": errors[asked.rate]})
    assert folder.rate(Row("CLEAR")) == 2.0
    errors.update({1.0: None, 2.0: None})
    with pytest.raises(DivergedError, match=r"CLEAR diverged at every rate that was tried \(1, 2, 3\)"):
        folder.rate(Row("CLEAR"))


def test_a_training_that_diverges_ends_with_a_sentence_and_a_trial_without_a_figure(tmp_path, monkeypatch):
    folder = Folder(tmp_path, TINY)
    monkeypatch.setattr(students, "flow_loss", lambda model, batch: flow_loss(model, batch) * torch.inf)
    with pytest.raises(DivergedError, match=r"^CLEAR, rate 0.001, seed 0: the loss of step 1 is inf at rate 0.001;"):
        folder.figures(run.Run(Row("CLEAR"), 1e-3, 0, 2))
    assert folder.trials(Row("CLEAR")) == {1e-3: None}


def test_the_full_sizes_match_a_swin_window():
    keys = {row.kind: FULL.keys(row.kind) for row in ROWS}
    assert keys.pop("linear") is None and keys.pop("sigmoid") == keys.pop("dense") == 1024
    assert keys["Swin"] == keys["PixArt-Sigma"] == keys["strided"] == 64
    assert all(found == pytest.approx(64, rel=0.25) for found in keys.values())
    assert FULL.steps * FULL.batch <= FULL.samples, "no sample is seen twice"
    assert {row.kind for row in ROWS} == set(KINDS), "dense attention is the floor of all"


def test_ranks_share_and_correlate():
    assert ranks([3.0, 1.0, 2.0, 1.0], more_is_nearer=False) == [4, 1.5, 3, 1.5]
    assert ranks([3.0, 1.0, 2.0], more_is_nearer=True) == [1, 3, 2]
    assert correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1) / (4 * 15)
    assert correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)


def test_the_papers_order_by_fid():
    rows = [{"name": name} for name in PAPER]
    by_fid = sorted(zip(paper_ranks(rows)["FID"], PAPER, strict=True))
    wanted = ["CLEAR, distilled", "CLEAR", "Swin", "strided", "PixArt-Sigma", "agent", "linear", "sigmoid"]
    assert [name for _, name in by_fid] == wanted


def test_the_tables_show_the_record(whole):
    before, plain, distilled = (line.split(" | ") for line in figures_table(whole).splitlines()[2:])
    row, taught = whole["rows"]
    assert before[2] == "as it is" and float(before[-5]) == pytest.approx(1000 * row["before"]["mean"], abs=0.006)
    assert plain[2] == "flow matching" and distilled[2] == "flow matching, distillation"
    for cells, figures in ((plain, row["after"]), (distilled, taught["after"])):
        means = [1000 * each["mean"] for each in figures]
        wanted = [sum(means) / 2, min(means), max(means)]
        shown = [float(part) for part in cells[-5].replace("(", "").replace(")", "").split() if part != "to"]
        assert shown == pytest.approx(wanted, abs=0.006)
    (cells,) = [line.split(" | ") for line in trials_table(whole).splitlines()[2:] if line.startswith("| CLEAR |")]
    assert cells[1].strip("* |") == f"{1000 * row['trials']['0.001']:.2f}"


def test_the_command_makes_a_record_and_refuses_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "ROWS", PAIR)
    monkeypatch.setitem(plans.EXTENTS, "quick", replace(TINY, seeds=(0,), steps=1))
    path = tmp_path / "record.json"
    call = ["comparison", "--extent", "quick", "--out", str(tmp_path), "--record", str(path), "--threads", "1"]
    main(call)
    record = json.loads(path.read_text())
    assert tables(record) in capsys.readouterr().out
    assert record["model"] == model_fingerprint() and record["threads"] == 1
    for option, value, said in (
        ("--model", str(tmp_path / "gone"), r"--model is .*gone; expected a file of a tiny FLUX"),
        ("--model", str(path), r"record.json is no file of a tiny FLUX"),
        ("--threads", "0", r"--threads is 0; expected 1 or more"),
    ):
        with pytest.raises(SystemExit, match=said):
            main([*call, option, value])


def test_the_committed_record_is_of_the_committed_model(capsys, tmp_path):
    main(["comparison", "--table"])
    shown = capsys.readouterr().out.strip()
    assert shown in RECORD.with_name("README.md").read_text(encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["model"] == model_fingerprint()
    assert [row["name"] for row in record["rows"]] == [row.name for row in ROWS]
    assert (record["steps"], record["side"], record["seeds"]) == (FULL.steps, FULL.side, list(FULL.seeds))
    assert lines_of(tmp_path / "gone", tables) == [NO_RECORD]


def test_in_the_record_local_attention_wins_in_every_seed():
    """What the README says of it: CLEAR before Swin before all that has no window, and distillation before none."""
    rows = {row["name"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))["rows"]}
    others = ("strided", "PixArt-Sigma", "agent", "sigmoid", "linear")
    for seed in range(len(FULL.seeds)):
        errors = {name: row["after"][seed]["mean"] for name, row in rows.items()}
        assert errors["dense"] < errors["CLEAR, distilled"] < errors["CLEAR"] < errors["Swin"] / 3
        assert errors["Swin"] < min(errors[name] for name in others) / 3
