"""The guidance laboratory: its detector, its measures, its guided denoisers, and its record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import ClearSpec
from clear_core.guidance import SCHEDULES, coarse
from clear_core.integrations.diffusers import apply_clear
from clear_core.sdedit import euler, sdedit_sigmas
from demo.experiments.guidance import RECORD
from demo.experiments.guidance_methods import (
    ABOVE,
    COMPARED,
    MAIN,
    Method,
    Start,
    enlarge,
    make_base,
    make_large,
    scene_noise,
)
from demo.experiments.guidance_run import Folder, several_things
from demo.experiments.guidance_table import tables
from demo.experiments.guided_denoiser import AlongReference, Corrected, RepeatedText, TowardsGuide
from demo.experiments.objects import blobs, components, count_things
from demo.experiments.picture_measures import detail, layout_agreement, seams
from demo.model import build_denoiser
from demo.tiny_flux.codec import decode, encode
from demo.world import Scene, draw_scene

README = RECORD.with_name("README.md")
GUIDANCE: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
OTHER = {"left": "middle", "middle": "right", "right": "left"}


def drawn(scene: Scene, side: int) -> torch.Tensor:
    """(3, side, side) as a decoder would give it."""
    picture = torch.from_numpy(draw_scene(scene, side, side)).permute(2, 0, 1)
    return decode(encode(picture[None]))[0].clamp(0, 1)


@pytest.mark.parametrize("side", [256, 1024])
def test_the_detector_finds_drawn_things_and_nothing_else(side: int):
    counts = [count_things(drawn(scene, side), scene) for scene in several_things(4)]
    wanted = sum(count.wanted for count in counts)
    assert wanted == 12 and sum(count.found for count in counts) == wanted
    assert sum(count.surplus for count in counts) <= 1


def test_the_detector_sees_a_repetition_and_an_empty_land():
    for scene in several_things(2):
        repeated = count_things(drawn(scene, 256).repeat(1, 2, 2), scene)
        assert (repeated.found, repeated.surplus) == (0, 12)
        empty = drawn(Scene(scene.ground, scene.time, scene.light, (), scene.detail), 512)
        assert (count_things(empty, scene).found, count_things(empty, scene).surplus) == (0, 0)
        # The detector goes by the caption: things of another colour or at another place are not found.
        swapped = replace(scene, things=tuple(replace(thing, place=OTHER[thing.place]) for thing in scene.things))
        assert count_things(drawn(scene, 256), swapped).found == 0


def test_a_blob_says_where_it_is_and_how_large():
    scene = several_things(1)[0]
    found = {blob.colour: blob for blob in blobs(drawn(scene, 512), scene)}
    ring = found["yellow"]
    assert ring.x == pytest.approx(0.5, abs=0.03) and ring.y == pytest.approx(0.64, abs=0.03)
    assert ring.area == pytest.approx(0.87 * 3.14 * 0.18**2, rel=0.2)


def test_components_are_those_that_touch():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :2, :2] = mask[0, 2, 2] = mask[0, 6:, 5:] = True
    labels = components(mask)[0]
    assert len(labels.unique()) == 3
    assert labels[0, 0] == labels[2, 2] != labels[7, 7] and labels[4, 4] == 0


def test_the_measures_of_known_pictures():
    scene = several_things(1)[0]
    base, large = drawn(scene, 256), drawn(scene, 512)
    assert layout_agreement(large, base) > 0.97
    assert layout_agreement(large.flip(2), base) < 0.95
    assert detail(large) > 1.5 * detail(enlarge(base[None], 512)[0])
    assert seams(large) == pytest.approx(1, abs=0.1)
    smooth = torch.linspace(0, 1, 512).expand(3, 512, 512)
    assert detail(smooth) < 1e-5 and seams(smooth) == pytest.approx(1, abs=0.01)
    assert seams(smooth + 0.1 * (torch.arange(512) // 16 % 2)) > 10


def test_guidance_of_strength_0_changes_no_bit_and_constant_guidance_keeps_the_low_frequencies():
    denoiser, noise, guide = build_denoiser(), scene_noise(0, 128), torch.randn(1, 16, 16, 16)
    sigmas = sdedit_sigmas(3, 1.0)
    with torch.inference_mode():
        plain = euler(denoiser, noise, sigmas)
        for schedule in SCHEDULES:
            idle = TowardsGuide(guide, sigmas.tolist(), schedule, strength=0.0)
            assert torch.equal(euler(Corrected(denoiser, idle), noise, sigmas), plain)
        for level in (1, 2):
            held = Corrected(denoiser, TowardsGuide(guide, sigmas.tolist(), "constant", level))
            for sigma in (1.0, 0.4):
                denoised = noise - sigma * held(noise, sigma)
                torch.testing.assert_close(coarse(denoised, level), coarse(guide, level), atol=1e-5, rtol=0)
            result = euler(held, noise, sigmas)
            torch.testing.assert_close(coarse(result, level), coarse(guide, level), atol=1e-5, rtol=0)


def test_the_base_run_is_stocks_and_its_predictions_are_kept():
    denoiser, noise = build_denoiser(), scene_noise(0, 64)
    with torch.inference_mode():
        start = make_base(denoiser, noise)
        assert torch.equal(start.latent, euler(denoiser, noise, sdedit_sigmas(20, 1.0)))
    assert list(start.predictions) == sdedit_sigmas(20, 1.0).tolist()[:-1]
    torch.testing.assert_close(list(start.predictions.values())[-1], start.latent)
    assert set(sdedit_sigmas(20, 0.5).tolist()[:-1]) <= set(start.predictions)


def test_alignment_with_a_reference_that_is_the_prediction_itself_changes_nothing():
    denoiser, noise, sigmas = build_denoiser(), scene_noise(0, 64), sdedit_sigmas(20, 0.3)
    with torch.inference_mode():
        own: dict[float, torch.Tensor] = {}

        def keep(denoised: torch.Tensor, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
            own[sigma] = denoised
            return denoised

        plain = euler(Corrected(denoiser, keep), noise, sigmas)
        aligned = euler(Corrected(denoiser, AlongReference(own, sigmas.tolist())), noise, sigmas)
    torch.testing.assert_close(aligned, plain, atol=1e-4, rtol=0)


def test_text_that_is_repeated_once_is_the_text():
    denoiser, latent = build_denoiser(), scene_noise(0, 128)
    with torch.inference_mode(), apply_clear(denoiser.transformer, ClearSpec(8)):
        torch.testing.assert_close(RepeatedText(denoiser, 1, 16)(latent, 0.7), denoiser(latent, 0.7))
        assert not torch.allclose(RepeatedText(denoiser, 2, 8)(latent, 0.7), denoiser(latent, 0.7))


def test_a_picture_is_made_once_and_methods_have_names_of_their_own(tmp_path):
    scene = several_things(1)[0]
    made: list[str] = []
    folder = Folder(tmp_path, made.append)
    first, again = folder.base(0, scene), folder.base(0, scene)
    assert made == ["0 base"] and torch.equal(first.latent, again.latent)
    assert first.predictions.keys() == again.predictions.keys()
    with torch.inference_mode():
        start = Start(torch.zeros(1, 16, 8, 8), {})
        denoiser, noise = build_denoiser(scene.caption), scene_noise(0, 128)
        large = {
            method: make_large(denoiser, method, start, noise)
            for method in (Method(), Method(0.3), Method(0.3, "decay"), Method(repeated=True))
        }
    assert len({method.name for method in large}) == len({tuple(one.flatten().tolist()) for one in large.values()}) == 4


def recorded(part: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["attention"], row["method"]): row for row in GUIDANCE[part]["rows"]}


def test_the_docs_show_the_guidance_record():
    assert tables(GUIDANCE) in README.read_text(encoding="utf-8")


def test_the_record_has_every_method_and_a_detector_that_works():
    assert list(recorded("main")) == [("distilled", method.name) for method in MAIN]
    assert list(recorded("compared")) == [(one, method.name) for one, methods in COMPARED.items() for method in methods]
    assert list(recorded("beyond")) == [("distilled", method.name) for method in ABOVE]
    assert GUIDANCE["scenes"] == [scene.caption for scene in several_things(len(GUIDANCE["scenes"]))]
    detector = GUIDANCE["detector"]
    assert detector["found"] >= 0.99 * detector["wanted"] and detector["surplus"] <= 0.05 * detector["wanted"]
    assert detector["copies_found"] == 0 and detector["copies_surplus"] >= 0.95 * detector["copies"]


@pytest.mark.parametrize("attention", ["dense", "plain", "distilled"])
def test_from_noise_the_record_asks_for_shift_or_constant_guidance(attention: str):
    rows = recorded("compared")
    alone, decay = rows[attention, Method().name], rows[attention, Method(schedule="decay").name]
    assert alone["found"] < 0.5
    for schedule in ("shift", "constant"):
        held = rows[attention, Method(schedule=schedule).name]
        assert held["found"] == 1 and held["surplus"] <= 0.25
        assert held["form"] > decay["form"] > alone["form"]


def test_level_2_leaves_more_detail_than_level_1_and_keeps_the_things():
    rows = recorded("main")
    for schedule in ("shift", "constant"):
        fine, rough = (rows["distilled", Method(schedule=schedule, level=level).name] for level in (1, 2))
        assert rough["detail"] > 1.3 * fine["detail"]
        assert rough["found"] == 1 and rough["surplus"] <= 0.25 and rough["form"] > 0.99


@pytest.mark.parametrize("strength", [0.5, 0.7])
def test_guidance_takes_the_surplus_out_of_sdedit(strength: float):
    rows = recorded("main")
    alone, held = (rows["distilled", each.name] for each in (Method(strength), Method(strength, "constant", 2)))
    assert held["surplus"] < alone["surplus"] and held["form"] > alone["form"]


def test_above_the_record_asks_for_sdedit_with_shift():
    rows = recorded("beyond")
    held = rows["distilled", Method(0.5, "shift").name]
    for other in (Method(0.5), Method(0.5, "decay"), Method(0.7, "decay"), Method(schedule="decay")):
        assert held["form"] > rows["distilled", other.name]["form"]
    assert held["found"] == 1 and held["surplus"] == 0 < rows["distilled", Method(0.5).name]["surplus"]


def test_the_products_defaults_are_those_of_the_record():
    """CLEAR Upscale above 4096 px: the schedule and the level with which the record loses and doubles nothing."""
    from clear_core.sdedit import guided_stages, plan_stages

    last = guided_stages(plan_stages(4096, 4096, upscale_by=2.0), "auto", "1.0")[-1]
    assert last.guide is not None
    beyond = {row["method"]: row for row in GUIDANCE["beyond"]["rows"]}
    chosen = beyond[f"SDEdit 0.5, {last.guide.schedule}, level {last.guide.level}"]
    assert chosen["surplus"] == 0 and chosen["found"] == 1
    assert chosen["layout"] >= max(row["layout"] for row in beyond.values()) - 1e-3
    assert beyond["SDEdit 0.5"]["surplus"] > 0
