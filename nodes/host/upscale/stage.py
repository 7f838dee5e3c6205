"""One stage of an enlargement through the host's own functions: enlarge, encode, noise and denoise, decode.

Source: what the stock nodes ImageScale, ImageUpscaleWithModel, VAEEncode, ModelSamplingAuraFlow, KSampler and
VAEDecode call, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.call_memory import MemoryPlan
from ....clear_core.number_checks import check_number
from ....clear_core.sdedit import (
    DEFAULT_OVERLAP,
    SMALLEST_VAE_TILE,
    Stage,
    TileLayout,
    check_finite,
    choose_tiles,
    reflect_to,
    wavelet_color_fix,
)
from ..guidance.guide import apply_guide
from ..model.memory_plan import memory_plan
from ..model.picture_model import PictureModel, picture_model
from ..model.sequence import sampler_conds
from ..model.table_positions import install_table
from ..model.throughput import timed
from .forecast import StageForecast, step_gflops
from .memory_advice import ADVICE_ENLARGE, memory_advice, tile_advice, vae_advice
from .progress import StageProgress
from .sigma_shift import with_shift
from .stage_mask import StageMask
from .tiled_model import TiledModel
from .vae_fit import check_latent
from .vae_work import decode, encode, tile_side


@dataclass(frozen=True)
class StageSettings:
    """The widgets that all stages share; names, units and ranges are the widgets'.

    Raises:
        ValueError: A number is not finite, negative, or not whole where it counts something.
    """

    steps: int = 20
    cfg: float = 1.0
    sampler_name: str = "euler"
    scheduler: str = "simple"
    tile_width: int = 0
    tile_height: int = 0
    tile_overlap: int = DEFAULT_OVERLAP
    color_fix: str = "none"
    shift: float = 0.0
    vae_tile_size: int = 0

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        for name in ("tile_width", "tile_height", "tile_overlap", "vae_tile_size"):
            check_number(name, getattr(self, name), 0, whole=True)
        if 0 < self.vae_tile_size < SMALLEST_VAE_TILE:
            raise ValueError(
                f"vae_tile_size is {self.vae_tile_size}; expected 0 (automatic) or {SMALLEST_VAE_TILE} px at least."
            )
        for name in ("cfg", "shift"):
            check_number(name, getattr(self, name), 0)

    def tiles(self, inputs: StageInputs, stage: Stage, batch: int = 1) -> TileLayout:
        """Whole frame or tiles: as set, or by a rule that uses the card's total memory, never its free memory."""
        total = comfy.model_management.get_total_memory(inputs.model.load_device)
        return choose_tiles(
            stage.grid,
            tile_height=self.tile_height,
            tile_width=self.tile_width,
            overlap=self.tile_overlap,
            memory=inputs.memory(),
            total=total,
            batch=batch,
            units=stage.units,
        )

    def vae_tile(self, vae: Any, stage: Stage) -> int:
        """Side in px of the VAE's tiles, 0 for the whole image."""
        return tile_side(vae, stage, self.vae_tile_size, (self.tile_width, self.tile_height))


@dataclass(frozen=True)
class StageInputs:
    """The sockets.

    Attributes:
        later_model: What samples in the stages after the first; None for ``model`` there too.
    """

    model: ModelPatcher
    positive: list[Any]
    vae: Any
    negative: list[Any] | None = None
    upscale_model: Any = None
    mask: Tensor | None = None
    later_model: ModelPatcher | None = None

    @property
    def picture(self) -> PictureModel:
        """What is known of the model.

        Raises:
            ValueError: It makes no pictures.
        """
        return picture_model(self.model, self.vae)

    def memory(self) -> MemoryPlan:
        """What the calls take: with all prompts, as the host is told, since some samplers use the negative at cfg 1."""
        return memory_plan(self.model, sampler_conds([*self.positive, *(self.negative or ())]), self.picture)

    def of_stage(self, number: int) -> StageInputs:
        """The sockets of one stage, whose ``model`` is the one that samples there."""
        if self.later_model is None or number == 1:
            return self
        return replace(self, model=self.later_model)

    @property
    def by_model(self) -> tuple[StageInputs, ...]:
        """The sockets with each model that samples: of the first stage, and of later ones if they have their own."""
        return (self,) if self.later_model is None else (self, self.of_stage(2))

    @property
    def conditionings(self) -> tuple[list[Any], list[Any]]:
        """The positive and the negative ones, as the host's sampler takes them.

        ControlNets of the stock node Apply ControlNet (OLD) ask for a negative one to share them with, and the host
        fails if there is none.
        """
        if self.negative:
            return self.positive, self.negative
        return [[text, {**extras, "control_apply_to_uncond": False}] for text, extras in self.positive], []

    def evaluated(self, cfg: float) -> list[Any]:
        """The conditionings that the host evaluates: without the negative ones if cfg is 1."""
        keeps_all = self.model.model_options.get("disable_cfg1_optimization", False)
        both = keeps_all or not math.isclose(cfg, 1.0)
        return [*self.positive, *(self.negative or ())] if both else list(self.positive)


def sampled_tiles(
    stage: Stage, inputs: StageInputs, settings: StageSettings, batch: int, mask: StageMask | None
) -> TileLayout:
    """The tiles of a stage, without those that nobody needs under its mask."""
    tiles = settings.tiles(inputs, stage, batch)
    return tiles if mask is None else mask.needed(tiles, inputs.model, stage.guide)


def step_work(stage: Stage, inputs: StageInputs, settings: StageSettings, batch: int) -> float:
    """Planned work of one step of a stage for a batch of images, in 10**9 operations."""
    mask = StageMask.of(inputs.mask, stage)
    if mask is not None and mask.is_empty:
        return 0.0
    tiles = sampled_tiles(stage, inputs, settings, batch, mask)
    return step_gflops(inputs.model, tiles, inputs.evaluated(settings.cfg), batch)


def run_stage(
    image: Tensor, inputs: StageInputs, stage: Stage, settings: StageSettings, progress: StageProgress
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one stage.

    Args:
        image: (B, H, W, 3) in 0 to 1; H and W are ``stage.source``.

    Returns:
        The image (B, *stage.size, 3), and the latent of the padded frame in the host's dict.

    Raises:
        ValueError: A setting does not fit, or a part made NaN; the sentence names it.
        comfy.model_management.OOM_EXCEPTION: Out of memory; the sentence names what to set.
    """
    if settings.cfg != 1.0 and not inputs.negative:
        raise ValueError(f"cfg is {settings.cfg:g} but negative holds no prompt; connect one or set cfg to 1.")
    mask = StageMask.of(inputs.mask, stage)
    tiles = sampled_tiles(stage, inputs, settings, image.shape[0], mask)
    vae_tile = settings.vae_tile(inputs.vae, stage)
    with progress.phase("enlarge"), memory_advice("enlarging", stage, ADVICE_ENLARGE):
        enlarged = enlarge(image, stage, inputs.upscale_model)
    with progress.phase("encode"), memory_advice("encoding", stage, vae_advice(inputs.vae, stage, vae_tile)):
        latent = encode(inputs.vae, reflect_to(enlarged, stage.padded), vae_tile, stage)
    check_latent(latent, image.shape[0], stage, inputs.picture)
    if mask is not None and mask.is_empty:
        progress.leave_out("denoise", "decode")
        return enlarged, {"samples": latent}
    with progress.phase("denoise"), memory_advice("denoising", stage, tile_advice(tiles)):
        latent = denoise(latent, inputs, stage, settings, tiles, progress, mask and mask.latents)
    check_finite(latent, f"the latent that model made in stage {stage.number}")
    with progress.phase("decode"), memory_advice("decoding", stage, vae_advice(inputs.vae, stage, vae_tile)):
        picture = decode(inputs.vae, latent, vae_tile, stage)[:, : stage.size[0], : stage.size[1]]
    check_finite(picture, f"the picture that vae made in stage {stage.number}")
    if settings.color_fix == "wavelet":
        picture = wavelet_color_fix(picture, enlarged.to(picture))
    if mask is not None:
        weight = mask.pixels.to(picture)
        picture = picture * weight + enlarged.to(picture) * (1 - weight)
    return picture, {"samples": latent}


def enlarge(image: Tensor, stage: Stage, upscale_model: Any) -> Tensor:
    """(B, *stage.size, 3): by the upscale model if there is one, then resized by Lanczos."""
    if not stage.enlarges:
        return image
    if upscale_model is not None:
        from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

        image = ImageUpscaleWithModel.execute(upscale_model, image)[0]
        check_finite(image, "the picture that upscale_model made")  # Lanczos makes black of NaN.
    height, width = stage.size
    if image.shape[1:3] == (height, width):
        return image
    return comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(1, -1)


def denoise(
    latent: Tensor,
    inputs: StageInputs,
    stage: Stage,
    settings: StageSettings,
    tiles: TileLayout,
    progress: StageProgress,
    noise_mask: Tensor | None = None,
) -> Tensor:
    """The latent, noised to the stage's strength and denoised again as KSampler does it."""
    model = timed(with_shift(inputs.model, settings.shift, stage)[0]).clone()
    install_table(model)
    if stage.guide is not None:
        model = apply_guide(model, latent, stage.guide)
    if not tiles.is_whole:
        model = TiledModel(tiles, progress.on_tile).install(model)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    planned = step_gflops(inputs.model, tiles, inputs.evaluated(settings.cfg), latent.shape[0])
    forecast = StageForecast(settings.sampler_name, planned)
    callback = progress.on_step(latent_preview.prepare_callback(model, settings.steps), forecast.seconds_left)
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, stage.seed),
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        *inputs.conditionings,
        latent,
        denoise=stage.denoise,
        noise_mask=noise_mask,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=stage.seed,
    )
