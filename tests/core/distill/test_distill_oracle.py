"""Losses, gradients and optimizer steps against the method's definition, in float64 and without this project's code.

The paper's equations 4 to 6: flow matching, half of the distance to the teacher's flow, half of the distance of the
attention outputs of every fourth block. The student is the stock model with the pairs outside its windows masked.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from clear_core.distill.config import TrainConfig
from clear_core.distill.families import TEACHINGS, Text
from clear_core.distill.samples import SampleFolder
from tests.support.diffusers_relatives import HEAD_DIM, HEADS, RELATIVES, Relative, in_windows
from tests.support.distillation import CONFIG, samples_for, start, teacher

RADIUS, GRID, STEPS = 2, (4, 6), 5

FLUX1 = Relative("FluxTransformer2DModel", CONFIG, lambda *_: {}, 3)

CASES = {"FLUX.1": FLUX1} | {name: RELATIVES[name] for name in ("Chroma", "FLUX.2", "Qwen-Image", "SD3.5 Large")}


def stock(name: str):
    return teacher() if name == "FLUX.1" else CASES[name].build()


def teaching_of(name: str):
    return next(each for each in TEACHINGS if name.startswith(each.family.name))


class Oracle:
    """The definition: two stock models in float64, the second one masked."""

    def __init__(self, name: str, guidance: float) -> None:
        self.name, self.guidance = name, guidance
        self.teacher = stock(name).double().requires_grad_(False)
        self.student = copy.deepcopy(self.teacher)
        self.trained = {key: p for key, p in self.student.named_parameters() if self._trains(key)}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self.seen: dict[int, list[torch.Tensor]] = {}

    @staticmethod
    def _trains(key: str) -> bool:
        parts = (".attn.to_q.", ".attn.to_k.", ".attn.to_v.", ".attn.to_out.0.", ".attn.to_qkv_mlp_proj.")
        return any(part in key for part in parts)

    def _tapped(self, model: torch.nn.Module, kept: list[torch.Tensor]) -> list[object]:
        double, single = model.transformer_blocks, getattr(model, "single_transformer_blocks", [])
        width = HEADS * HEAD_DIM
        if not len(single):
            blocks = [block.attn for index, block in enumerate(double) if index % 4 == 0]
            return [b.register_forward_hook(lambda m, a, out: kept.append(out[0])) for b in blocks]
        attn = single[-1].attn  # No place of these small models divides by four.
        if hasattr(attn, "to_qkv_mlp_proj"):
            return [attn.to_out.register_forward_pre_hook(lambda m, a: kept.append(a[0][..., :width]))]
        return [attn.register_forward_hook(lambda m, a, out: kept.append(out))]

    def flow(
        self, model: torch.nn.Module, batch, masked: bool
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        teaching = teaching_of(self.name)
        texts = [(batch["prompt_embeds"], batch.get("pooled"))]
        if "negative_embeds" in batch:
            texts.append((batch["negative_embeds"], batch.get("negative_pooled")))
        kept: list[torch.Tensor] = []
        hooks = self._tapped(model, kept)
        flows = []
        sigma = batch["sigma"][:, None, None, None]
        noisy = sigma * batch["noise"] + (1 - sigma) * batch["latents"]

        def call(embeds, pooled):
            scale = self.guidance if model.config.get("guidance_embeds") else None
            return teaching.call(model, noisy, batch["sigma"], Text(embeds, pooled), scale)

        for embeds, pooled in texts:
            if masked:
                tokens = noisy.flatten(2).transpose(1, 2)
                grid = GRID
                inputs = {"encoder_hidden_states": embeds, "hidden_states": tokens[:, : grid[0] * grid[1]]}
                with in_windows(CASES[self.name], inputs, grid, RADIUS):
                    flows.append(call(embeds, pooled))
            else:
                flows.append(call(embeds, pooled))
        for hook in hooks:
            hook.remove()
        guided = flows[0] if len(flows) == 1 else flows[1] + self.guidance * (flows[0] - flows[1])
        return flows[0], guided, kept

    def losses(self, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            _, wanted, theirs = self.flow(self.teacher, batch, masked=False)
        plain, guided, mine = self.flow(self.student, batch, masked=True)
        attention = torch.stack([(a - b).pow(2).mean() for a, b in zip(mine, theirs, strict=True)]).mean()
        return (plain - (batch["noise"] - batch["latents"])).pow(2).mean(), (guided - wanted).pow(2).mean(), attention


def as_oracle(batch) -> dict[str, torch.Tensor]:
    found = {"latents": batch.latents, "noise": batch.noise, "sigma": batch.sigma} | batch.text
    return {key: value.double() for key, value in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_five_steps_are_the_definitions(name: str, tmp_path: Path):
    teaching, model = teaching_of(name), stock(name)
    guidance = teaching.guidance
    cells = tuple(side * teaching.family.token_cells for side in GRID)
    data = samples_for(tmp_path / "data", teaching.needs(model.config, guidance), grid=cells)
    plan = TrainConfig(radius=RADIUS, steps=STEPS, batch=2, rate=1e-3, clip=1e6)
    training = start(model, data, plan)
    oracle = Oracle(name, guidance)
    optimizer = torch.optim.AdamW(oracle.trained.values(), lr=1e-3, weight_decay=1e-4)
    samples = SampleFolder(data)
    for step in range(STEPS):
        batch = samples.batch(training.order[step], range(2), plan.seed, step)
        flow, distill, attention = oracle.losses(as_oracle(batch))
        optimizer.zero_grad()
        (flow + 0.5 * distill + 0.5 * attention).backward()
        found = training.run_step()
        for term, wanted in (("flow", flow), ("distill", distill), ("attention", attention)):
            assert found[term] == pytest.approx(wanted.item(), rel=2e-4), (step, term)
        if name == "FLUX.2":  # The rows of the MLP share a matrix with the trained ones; the definition trains no MLP.
            for key, parameter in oracle.trained.items():
                if "to_qkv_mlp_proj" in key:
                    parameter.grad[3 * HEADS * HEAD_DIM :] = 0
        optimizer.step()
    width = HEADS * HEAD_DIM
    moved = 0
    for place in training.pair.places:
        part, at = training.pair.part(place), slice(place.index * width, (place.index + 1) * width)
        theirs = oracle.trained[f"{place.path}.weight"][at].float()
        before = oracle.teacher.get_parameter(f"{place.path}.weight")[at].float()
        torch.testing.assert_close(part.weight, theirs, rtol=0, atol=5e-5, msg=place.name)
        moved = max(moved, (theirs - before).abs().max().item())
    assert moved > 3e-3, "five steps of a thousandth each"
