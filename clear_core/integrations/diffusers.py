"""CLEAR in a diffusers transformer (FLUX.1, Chroma, FLUX.2, Qwen-Image, SD3.5), and off again without a trace.

    loaded = load_clear(pipe, "clear_local_16.safetensors")
    handle = apply_clear(pipe.transformer, loaded.spec, spatial_weights=loaded.spatial_weights)
    pipe(...)                # any pipeline, any sizes, in any order
    handle.remove()          # or: with apply_clear(...): pipe(...)

Needs diffusers 0.32 or later; models other than FLUX.1 were tested with 0.41 and 0.42. Only the model's attention
processors are replaced. A forward pre-hook computes the grid and the rotary embedding of each call and adds them to
that call.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..attention import check_backend
from ..attention.pool import mean_weight
from ..settings import ClearSettings
from ..spec import ClearSpec
from ..weights.naming import spatial_name
from ..wording import quoted
from .diffusers_call import describe_call
from .diffusers_model import Block, attention_modules, check_model, check_settings, shape_of
from .diffusers_offload import check_room_for_pooling_weights
from .diffusers_parallel import ContextParallel, Way, context_config, disable
from .diffusers_processor import ClearAttnProcessor
from .diffusers_styles import processor_like
from .diffusers_weights import Loaded, load_clear

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    Transformer = (
        FluxTransformer2DModel
        | ChromaTransformer2DModel
        | Flux2Transformer2DModel
        | QwenImageTransformer2DModel
        | SD3Transformer2DModel
    )

__all__ = ["ClearHandle", "Loaded", "apply_clear", "check_spatial_weights", "load_clear"]

logger = logging.getLogger(__name__)


class ClearHandle:
    """CLEAR on one transformer; :meth:`remove`, or the end of a ``with`` block, removes it.

    Attributes:
        transformer: The model.
        settings: What was applied.
        parallel: How it runs on several processes; ``parallel.peers`` counts the bytes that this one has sent.
        cp_plan: For ``enable_parallelism(cp_plan=...)``; None if it was applied for one process.
    """

    def __init__(
        self,
        transformer: Transformer,
        settings: ClearSettings,
        weights: Mapping[Block, Tensor],
        parallel: ContextParallel,
    ) -> None:
        self.transformer = transformer
        self.settings = settings
        self.parallel = parallel
        self.cp_plan = parallel.plan()
        self._was_parallel = context_config(transformer) is not None
        self._swaps: list[tuple[Any, ClearAttnProcessor, Any]] = []
        for block, attn in attention_modules(transformer):
            weight = weights.get(block)
            # One of its own for each of two attentions in a block, so that a stored model holds each once.
            ours = processor_like(attn.processor, None if weight is None else weight.clone())
            self._swaps.append((attn, ours, attn.processor))
            attn.set_processor(ours)
        self._paused = False
        describe = functools.partial(describe_call, settings, shape_of(transformer), parallel)

        def unless_paused(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args, kwargs) if self._paused else describe(model, args, kwargs)

        self._hook: RemovableHandle = transformer.register_forward_pre_hook(unless_paused, with_kwargs=True)

    @contextmanager
    def paused(self) -> Generator[None]:
        """The model with its earlier processors, as if CLEAR had been removed, until the ``with`` block ends.

        CLEAR's processors with their pooling weights come back as the same objects.
        """
        ours = [swap for swap in self._swaps if swap[0].processor is swap[1]]
        self._paused = True
        for attn, _, stock in ours:
            attn.set_processor(stock)
        try:
            yield
        finally:
            self._paused = False
            for attn, clear, _ in ours:
                attn.set_processor(clear)

    def remove(self) -> None:
        """Restore the earlier processors; one that other code has set since is kept.

        Context parallelism that was enabled with CLEAR on goes with it: the earlier processors know nothing of it.
        """
        self._hook.remove()
        if self._swaps and not self._was_parallel and context_config(self.transformer) is not None:
            disable(self.transformer)
        for attn, ours, stock in self._swaps:
            if attn.processor is ours:
                attn.set_processor(stock)
        self._swaps.clear()

    def __enter__(self) -> ClearHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply_clear(
    transformer: Transformer,
    spec: ClearSpec,
    *,
    spatial_weights: Mapping[Block, Tensor] | None = None,
    ntk_factor: float = 0.0,
    proportional_attention: str = "auto",
    backend: str = "auto",
    ntk: str = "constant",
    parallel: Way | None = None,
) -> ClearHandle:
    """Give every block of a transformer windowed attention (arXiv 2412.16112).

    Distilled weights are :func:`load_clear`'s, before or after; if after, that loads the file's pooling weights too.
    Nobody has published any but for FLUX.1; without, windows are training-free and cost quality.

    Text masks of Chroma and Qwen-Image are honoured. Text that no item of the batch sees is cut off; what else a mask
    does goes to the attention as a bias, for which "auto" takes "gather".

    Args:
        transformer: A diffusers model, before ``torch.compile``: FLUX.1 (dev, schnell, Krea, Fill, Canny, Depth,
            Kontext), Chroma, FLUX.2 (dev, klein), Qwen-Image, Qwen-Image-Edit, or SD3 and SD3.5.
        spec: Window radius and down factor.
        spatial_weights: (d, d) by (stream, block index), one for every block, as
            ``ClearFile.spatial_weights()`` gives them; None or empty pools by the mean. The values are copied.
        ntk_factor: Factor on the rotary base; 0 decides by family and frame (FLUX.1 and Chroma: 1 up to 8192 image
            tokens, 10 above; others: 1; by the frame's sides if ``ntk`` is "fading"), 1 is off. SD3 has none.
        proportional_attention: "on", "off", or "auto" (on above 8192 image tokens, FLUX.2's 16384).
        backend: As in :func:`clear_core.clear_attention`.
        ntk: How the rotary base is stretched: "constant", "clipped" or "fading", see :mod:`clear_core.rope`. "fading"
            takes the noise level of a call from its ``timestep``, which must be the same for the whole batch.
        parallel: How several processes share a picture once ``enable_parallelism`` is called with the handle's
            ``cp_plan``: "strips" of rows, or "heads", see :mod:`clear_core.parallel`. FLUX.1 alone. Tensor parallelism
            needs none.

    Returns:
        The handle that removes it.

    Raises:
        ImportError: diffusers is not installed, or has no context parallelism and ``parallel`` is given.
        TypeError: The model is not a transformer of a known family.
        ValueError: A value or weight does not fit the model or its family, a block's attention is not its own, or
            offloading has no room for pooling weights.
    """
    shape = shape_of(transformer)
    check_model(transformer, shape.family)
    if not isinstance(spec, ClearSpec):  # pyright: ignore[reportUnnecessaryIsInstance]  callers need not be typed
        raise ValueError(f"spec is {quoted(spec)}; expected a ClearSpec.")
    check_backend(backend)
    settings = ClearSettings(spec, ntk_factor, proportional_attention, backend, ntk=ntk)
    check_settings(settings, shape.family, parallel)
    blocks = dict(attention_modules(transformer))
    weights = check_spatial_weights(spatial_weights or {}, spec, blocks)
    if weights:
        check_room_for_pooling_weights(transformer)
    embedder, own = type(transformer.pos_embed).__name__, shape.family.diffusers.embedder
    if own is not None and embedder != own and settings.ntk_factor != 1.0:
        logger.warning(
            "The model's position embedder is %s, not its family's own: it is kept, and no NTK factor is applied.",
            embedder,
        )
    return ClearHandle(transformer, settings, weights, ContextParallel(parallel))


def check_spatial_weights(
    given: Mapping[Block, Tensor], spec: ClearSpec, blocks: Mapping[Block, nn.Module]
) -> dict[Block, Tensor]:
    """A copy of every block's pooling weight, (1, 1, 1, d, 1, d, 1); empty if ``spec`` pools nothing or by the mean.

    Raises:
        ValueError: A weight is missing, belongs to no block, or does not have the shape of ``spec``.
    """
    if not spec.pools:
        if given:
            raise ValueError(
                f"spatial_weights holds {len(given)} weights, but the spec ({spec}) does not pool; give "
                "the down factor they were trained with."
            )
        return {}
    if spec.overview:
        if given:
            raise ValueError(
                f"spatial_weights holds {len(given)} weights, but the spec ({spec}) has an overview, whose cells are "
                "plain means; leave out one of the two."
            )
        return {}
    d = spec.down_factor
    unmatched = sorted(map(str, given.keys() ^ blocks.keys()))
    if given and unmatched:
        raise ValueError(
            f"spatial_weights holds {len(given)} weights for {len(blocks)} blocks, and {unmatched[0]} is "
            "in only one of the two; use weights made for this model."
        )
    weights = {}
    for block, attn in blocks.items():
        weight = given.get(block, mean_weight(d))
        if tuple(weight.shape) not in ((d, d), (1, 1, 1, d, 1, d, 1)):
            raise ValueError(
                f"{spatial_name(*block)} has shape {tuple(weight.shape)}; expected ({d}, {d}), the down "
                "factor of the spec."
            )
        device = next(attn.parameters()).device
        # Offloaded modules keep their parameters on "meta"; pooling moves the few elements to the query's device.
        weights[block] = (
            weight.detach().reshape(1, 1, 1, d, 1, d, 1).to("cpu" if device.type == "meta" else device, copy=True)
        )
    return weights
