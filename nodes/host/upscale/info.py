"""Text about a run of CLEARUpscale, shown on the node at its start and given as its ``info`` output."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.call_memory import MemoryPlan
from ....clear_core.effective import Effective
from ....clear_core.inspection.units import percent
from ....clear_core.memory import GIB
from ....clear_core.sdedit import Stage
from ..model.host_estimate import NO_ESTIMATE_WORDS
from ..model.picture_model import picture_model
from ..model.read import backend_of, clear_of, effective_of, has_windows, weights_of
from ..model.sequence import sampler_conds, sequence_of
from ..pack import versions
from .sigma_shift import with_shift
from .stage import StageInputs, StageSettings, sampled_tiles
from .stage_mask import StageMask

NO_WINDOW = "no window: costs what dense attention costs; CLEARAttention has none for this model"
EMPTY_MASK = "empty, so that nothing is sampled and the picture is only enlarged"


def attention_words(model: ModelPatcher) -> str:
    """The model's attention as it is set."""
    patch = clear_of(model)
    if patch is None and picture_model(model).host is None:
        return NO_WINDOW
    if patch is None:
        return "dense, no windows: there is no CLEARAttention before this node"
    settings = patch.settings
    ntk = f"{settings.ntk_factor:g}" if settings.ntk_factor else "auto"
    if settings.ntk != "constant":
        ntk += f" {settings.ntk}"
    weights = f"{patch.file.name} at strength {patch.strength:g}" if patch.file else "none"
    return (
        f"CLEAR, {settings.windows}, ntk {ntk}, proportional {settings.proportional_attention}, "
        f"backend {settings.backend}, weights {weights}"
    )


def stage_words(stage: Stage, inputs: StageInputs, settings: StageSettings, batch: int) -> str:
    """One line about one stage."""
    mask = StageMask.of(inputs.mask, stage)
    tiles = sampled_tiles(stage, inputs, settings, batch, mask)
    vae_tile = settings.vae_tile(inputs.vae, stage)
    memory, units = inputs.memory(), stage.units
    height, width = stage.size
    padded = "" if stage.padded == stage.size else f" (padded to {stage.padded[1]} x {stage.padded[0]})"
    shape = (
        "whole frame"
        if tiles.is_whole
        else (
            f"{len(tiles.tiles) + len(tiles.skipped)} tiles of {tiles.tile[1] * units.pixels} x "
            f"{tiles.tile[0] * units.pixels} px, overlap {tiles.overlap * units.pixels}"
            + (f", {len(tiles.skipped)} of them without a masked pixel and not sampled" if tiles.skipped else "")
        )
    )
    return (
        f"stage {stage.number}: {stage.source[1]} x {stage.source[0]} to {width} x {height} px{padded}, "
        f"{stage.tokens} tokens, {shape}, {settings.steps} steps at denoise {stage.denoise:g}, seed {stage.seed}, "
        f"{guide_words(stage)}, VAE {f'in tiles of {vae_tile} px' if vae_tile else 'whole'}, "
        f"{memory_words(memory, units.tokens(tiles.tile), batch)}"
    )


def memory_words(memory: MemoryPlan, tokens: int, batch: int) -> str:
    """What a call takes, and whose estimate that is where it is not counted here."""
    peak = memory.peak_bytes(tokens, batch)
    if memory.source == NO_ESTIMATE_WORDS:
        return f"memory not known ({memory.source})"
    return f"about {peak / GIB:.1f} GiB beside the weights" + (f" ({memory.source})" if memory.source else "")


def guide_words(stage: Stage) -> str:
    """Whether the picture that a stage enlarges also guides it."""
    if stage.guide is None:
        return "not guided"
    return f"guided ({stage.guide.schedule}, strength {stage.guide.strength:g}, level {stage.guide.level})"


def effect_words(inputs: StageInputs, stage: Stage, settings: StageSettings, batch: int) -> str:
    """What CLEAR's settings come to at a stage's size, for the first prompt: of each tile if there are tiles."""
    model = inputs.model
    first = next(iter(sampler_conds(inputs.positive)), {})
    tile = settings.tiles(inputs, stage, batch).tile
    effective = effective_of(model, sequence_of(inputs.picture, first, tile), stage.grid)
    return (
        f"stage {stage.number} attention: {window_words(effective)}, ntk {effective.stretch}, "
        f"scale {effective.scale:.6f} ({'proportional' if effective.proportional else 'plain'}), "
        f"backend {backend_of(model, effective)[0]}"
    )


def window_words(effective: Effective) -> str:
    """Whether there are windows, in which blocks and in which part of the sampling."""
    if effective.inactive:
        return f"no windows ({effective.inactive.value})"
    words = "windows"
    if effective.dense_blocks:
        words += f" in {effective.windowed_blocks} of {effective.shape.blocks} blocks"
    if effective.active_range != (0, 1):
        start, end = map(percent, effective.active_range)
        words += f" from {start} to {end} of the sampling"
    return words


def mask_words(mask: Tensor | None) -> str:
    """Whether there is a mask, and whether it holds anything."""
    if mask is None:
        return "no"
    return "yes" if mask.any() else EMPTY_MASK


def weight_lines(model: ModelPatcher) -> list[str]:
    """The distilled weights, so that others can check whether theirs are the same."""
    weights = weights_of(clear_of(model))
    if weights is None:
        return []
    line = f"weights: {weights.name}, strength {weights.strength:g}, sha256 {weights.fingerprint}"
    return [line, *(f"about the weights: {remark}" for remark in weights.remarks)]


def info_text(stages: tuple[Stage, ...], inputs: StageInputs, settings: StageSettings, batch: int) -> str:
    """Everything that determines the picture, one line each, stages first."""
    with_inputs = [(stage, inputs.of_stage(stage.number)) for stage in stages]
    lines = [stage_words(stage, each, settings, batch) for stage, each in with_inputs]
    lines += [effect_words(each, stage, settings, batch) for stage, each in with_inputs if has_windows(each.model)]
    lines += [
        f"pictures: {batch}",
        f"sampler: {settings.sampler_name}, scheduler {settings.scheduler}, cfg {settings.cfg:g}",
    ]
    shifts = dict.fromkeys(with_shift(each.model, settings.shift, stage)[1] for stage, each in with_inputs)
    lines.append(f"shift: {', then '.join(shifts)}")
    for name, each in zip(("", "later_model "), inputs.by_model, strict=False):
        lines += [
            f"{name}attention: {attention_words(each.model)}",
            *(f"{name}{line}" for line in weight_lines(each.model)),
        ]
    lines += [
        f"enlarged by: {'upscale model, then ' if inputs.upscale_model is not None else ''}Lanczos",
        f"color fix: {settings.color_fix}",
        f"mask: {mask_words(inputs.mask)}",
        *(f"{name}: {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines)
