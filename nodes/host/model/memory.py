"""A lower peak of memory and a true estimate of it, for every sampler that gets the model.

Source: ``transformer_options["patches_replace"]["dit"]``, ``WrappersMP.APPLY_MODEL`` and ``PREPARE_SAMPLING``,
in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import comfy.model_management
from comfy.ldm.flux.layers import SingleStreamBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ....clear_core.layout import token_grid
from ....clear_core.memory import CHUNK_TOKENS, FLUX_TEXT, Activations, chunk_of, is_chunked
from .chunked_blocks import is_plain, run_double_block, run_single_block
from .memory_estimate import scaled_estimate

KEY = "clear_flux_memory"


@dataclass(frozen=True)
class MemoryPatch:
    """The wrappers that lower the peak and correct the estimate.

    Attributes:
        chunk: Fewest tokens that a block computes at a time; sequences of up to twice as many are not divided.
    """

    chunk: int = CHUNK_TOKENS

    def install(self, model: ModelPatcher) -> None:
        """Put it on a clone, in place of an earlier one."""
        for wrapper_type, wrapper in (
            (WrappersMP.APPLY_MODEL, self.apply_model),
            (WrappersMP.PREPARE_SAMPLING, self.prepare),
        ):
            model.remove_wrappers_with_key(wrapper_type, KEY)
            model.add_wrapper_with_key(wrapper_type, KEY, wrapper)

    def apply_model(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  # the host's own default, only read
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model, in chunks if the sequence is long."""
        tokens = sequence_tokens(x, c_crossattn, extra)
        if is_chunked(tokens, self.chunk) and self.wanted(transformer_options, extra):
            replaced = transformer_options.get("patches_replace", {})
            blocks = {**self.block_patches(executor.class_obj.diffusion_model, tokens), **replaced.get("dit", {})}
            transformer_options = {**transformer_options, "patches_replace": {**replaced, "dit": blocks}}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)

    def wanted(self, options: dict[str, Any], extra: dict[str, Any]) -> bool:
        """Whether the blocks of this call may be replaced: not if something patches the inside of the host's own."""
        patches = options.get("patches", {})
        return not (
            patches.get("attn1_patch")
            or patches.get("attn1_output_patch")
            or extra.get("ref_latents_method") == "index_timestep_zero"
        )

    def block_patches(self, flux: Any, tokens: int) -> dict[tuple[str, int], Callable[..., Any]]:
        """Replacements for one call of the model, by the host's names of the blocks."""
        call = ChunkedCall(chunk_of(tokens, self.chunk))
        return {
            (name, index): partial(call.run, block)
            for name, blocks in (("double_block", flux.double_blocks), ("single_block", flux.single_blocks))
            for index, block in enumerate(blocks)
            if is_plain(block)
        }

    def prepare(
        self, executor: WrapperExecutor, model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Let the host make room for what a call really takes."""
        with scaled_estimate(model.model, partial(self.ratio, activations_of(model))):
            return executor(model, noise_shape, *args, **kwargs)

    def ratio(self, activations: Activations, base: Any, shape: Any) -> float:
        """Our estimate over the host's for a latent of this shape; 1 if ``memory_usage_factor`` was set by hand."""
        is_set_by_hand = base.memory_usage_factor != base.model_config.memory_usage_factor
        if len(shape) != 4 or not base.memory_usage_factor or is_set_by_hand:
            return 1.0
        wanted = activations.peak_bytes(image_tokens(shape) + FLUX_TEXT, chunk=self.chunk)
        return wanted / base.memory_required([1, *shape[1:]])


class ChunkedCall:
    """The replaced blocks of one call of the model."""

    def __init__(self, chunk: int):
        self.chunk = chunk
        self.result: dict[str, Tensor] = {}

    def run(self, block: nn.Module, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        """Run a block; arguments and result as the host's ``patches_replace`` has them."""
        # The host holds the previous result while the next block runs; dropping it frees one hidden state.
        self.result.clear()
        run = run_single_block if isinstance(block, SingleStreamBlock) else run_double_block
        self.result = cast("Callable[..., Any]", run)(block, args, self.chunk)  # torch leaves the type open
        return self.result


def image_tokens(shape: Any) -> int:
    """Tokens of a latent (B, C, H, W)."""
    height, width = token_grid(*shape[-2:])
    return height * width


def sequence_tokens(x: Tensor, text: Tensor | None, extra: dict[str, Any]) -> int:
    """Tokens of one call's sequence; 0 if the latent is no image.

    Args:
        x: Latent, (B, C, H, W) for an image.
        text: (B, T, width) or None.
        extra: The call's other arguments; ``ref_latents`` count.
    """
    if x.ndim != 4:
        return 0
    latents = [x, *(extra.get("ref_latents") or ())]
    return sum(image_tokens(latent.shape) for latent in latents) + (0 if text is None else text.shape[1])


def activations_of(model: ModelPatcher) -> Activations:
    """Shape of the hidden states of a FLUX in the host."""
    config = model.model.model_config.unet_config
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return Activations(config["hidden_size"], config.get("mlp_ratio", 4.0), comfy.model_management.dtype_size(dtype))
