"""A lower peak of memory and a true estimate of it, for every sampler that gets the model.

Source: ``transformer_options["patches_replace"]["dit"]``, ``WrappersMP.APPLY_MODEL`` and ``PREPARE_SAMPLING``,
in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from comfy.ldm.flux.layers import SingleStreamBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ....clear_core.call_memory import MemoryPlan
from ....clear_core.memory import CHUNK_TOKENS, chunk_of, is_chunked
from .block_forecast import KEY, may_replace_blocks
from .chunked_blocks import is_plain, own_forward, run_double_block, run_single_block
from .memory_estimate import own_estimate
from .memory_plan import memory_plan
from .sequence import Cond, image_tokens, sequence_tokens


@dataclass(frozen=True)
class MemoryPatch:
    """The wrappers that lower the peak and correct the estimate.

    Attributes:
        chunk: Fewest tokens that a block computes at a time; sequences of about twice as many are not divided. None
            leaves all blocks as they are.
    """

    chunk: int | None = CHUNK_TOKENS

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
        if (
            self.chunk is not None
            and is_chunked(tokens, self.chunk)
            and may_replace_blocks(transformer_options, extra.get("ref_latents_method"))
        ):
            replaced = transformer_options.get("patches_replace", {})
            chunk = chunk_of(tokens, self.chunk)
            blocks = {**block_patches(executor.class_obj.diffusion_model, chunk), **replaced.get("dit", {})}
            transformer_options = {**transformer_options, "patches_replace": {**replaced, "dit": blocks}}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)

    def prepare(
        self,
        executor: WrapperExecutor,
        model: ModelPatcher,
        noise_shape: Any,
        conds: dict[str, list[Cond]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Let the host make room for what a call really takes."""
        plan = memory_plan(model, [cond for each in conds.values() for cond in each])
        with own_estimate(model.model, partial(self.required, plan)):
            return executor(model, noise_shape, conds, *args, **kwargs)

    def required(self, plan: MemoryPlan, base: Any, shape: Any) -> float | None:
        """Bytes for a latent of this shape; None for the host's own if ``memory_usage_factor`` was set by hand."""
        is_set_by_hand = base.memory_usage_factor != base.model_config.memory_usage_factor
        if len(shape) != 4 or not base.memory_usage_factor or is_set_by_hand:
            return None
        return plan.peak_bytes(image_tokens(shape), shape[0])


def block_patches(flux: Any, chunk: int) -> dict[tuple[str, int], Callable[..., Any]]:
    """Replacements for one call of the model, by the host's names of the blocks."""
    call = ChunkedCall(chunk)
    return {
        (name, index): partial(call.run, block)
        for name, blocks in (("double_block", flux.double_blocks), ("single_block", flux.single_blocks))
        for index, block in enumerate(blocks)
        if is_plain(block, own_forward(block))
    }


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
