"""A lower peak and a truthful estimate of it, for every sampler that gets the model.

Source: ``transformer_options["patches_replace"]["dit"]``, ``WrappersMP.APPLY_MODEL`` and ``PREPARE_SAMPLING``,
``BaseModel.memory_required``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
from comfy.ldm.flux.layers import SingleStreamBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ....clear_core.layout import token_grid
from ....clear_core.memory import CHUNK_TOKENS, FLUX_TEXT, Activations, chunk_of, is_chunked
from .chunked_blocks import is_plain, run_double_block, run_single_block

KEY = "clear_flux_memory"


@dataclass(frozen=True)
class MemoryPatch:
    """The wrappers of the memory part.

    Attributes:
        chunk: Fewest tokens that a block works on at a time; sequences of up to twice as many run as they are.
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
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict = {},
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model with its blocks in chunks, where the sequence is long."""
        tokens = self.tokens(x, c_crossattn, extra)
        if is_chunked(tokens, self.chunk) and self.wanted(transformer_options, extra):
            replaced = transformer_options.get("patches_replace", {})
            blocks = {**self.block_patches(executor.class_obj.diffusion_model, tokens), **replaced.get("dit", {})}
            transformer_options = {**transformer_options, "patches_replace": {**replaced, "dit": blocks}}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)

    def tokens(self, x: Tensor, text: Tensor | None, extra: dict[str, Any]) -> int:
        """Tokens of one call's sequence; 0 where it is no picture."""
        if x.ndim != 4:
            return 0
        latents = [x, *(extra.get("ref_latents") or ())]
        return sum(image_tokens(latent.shape) for latent in latents) + (0 if text is None else text.shape[1])

    def wanted(self, options: dict[str, Any], extra: dict[str, Any]) -> bool:
        """Whether the blocks of this call may be replaced: these ask for what happens inside the host's own."""
        patches = options.get("patches", {})
        return not (
            patches.get("attn1_patch")
            or patches.get("attn1_output_patch")
            or extra.get("ref_latents_method") == "index_timestep_zero"
        )

    def block_patches(self, flux: nn.Module, tokens: int) -> dict[tuple[str, int], Callable]:
        """Replacements for one call of the model, by the host's names of the blocks."""
        call = ChunkedCall(chunk_of(tokens, self.chunk))
        return {
            (name, index): partial(call.run, block)
            for name, blocks in (("double_block", flux.double_blocks), ("single_block", flux.single_blocks))
            for index, block in enumerate(blocks)
            if is_plain(block)
        }

    def prepare(self, executor: Callable, model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Let the host make room for what a call really takes."""
        base = model.model
        own = base.memory_usage_factor
        base.memory_usage_factor = self.factor(model, noise_shape)
        try:
            return executor(model, noise_shape, *args, **kwargs)
        finally:
            base.memory_usage_factor = own

    def factor(self, model: ModelPatcher, noise_shape: Any) -> float:
        """The ``memory_usage_factor`` by which the host's own formula gives our estimate; one set by hand stands."""
        base = model.model
        is_set_by_hand = base.memory_usage_factor != base.model_config.memory_usage_factor
        if len(noise_shape) != 4 or not base.memory_usage_factor or is_set_by_hand:
            return base.memory_usage_factor
        host = base.memory_required([1, *noise_shape[1:]])
        wanted = activations_of(model).peak_bytes(image_tokens(noise_shape) + FLUX_TEXT, chunk=self.chunk)
        return base.memory_usage_factor * wanted / host


class ChunkedCall:
    """The replaced blocks of one call of the model."""

    def __init__(self, chunk: int):
        self.chunk = chunk
        self.answer: dict[str, Tensor] = {}

    def run(self, block: nn.Module, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        """A block in the form in which the host calls a replaced one."""
        # The host keeps the last answer until the next comes, and with it a hidden state that it has copied by then.
        self.answer.clear()
        run = run_single_block if isinstance(block, SingleStreamBlock) else run_double_block
        self.answer = run(block, args, self.chunk)
        return self.answer


def image_tokens(shape: Any) -> int:
    """Tokens of a latent (B, C, H, W)."""
    height, width = token_grid(*shape[-2:])
    return height * width


def activations_of(model: ModelPatcher) -> Activations:
    """Shape of the hidden states of a FLUX in the host."""
    config = model.model.model_config.unet_config
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return Activations(config["hidden_size"], config.get("mlp_ratio", 4.0), comfy.model_management.dtype_size(dtype))
