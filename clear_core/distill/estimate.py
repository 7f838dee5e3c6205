"""How much memory a training takes, before anything is loaded: its own step, run on tensors without numbers ("meta").

The model is built from its configuration, quantised by the same libraries, and runs two steps of the real loop: the
first one makes the optimizer's state, the second one is counted. Only attention is put in by its memory: a fused kernel
keeps queries, keys, values, the result and a log-sum-exp of each query, and no scores.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from ..number_checks import check_number
from ..spec import ClearSpec
from .bases import quantise
from .config import TrainConfig
from .losses import distillation_losses
from .memory_count import MemoryCount, bytes_of
from .offload import offload_blocks
from .optimizers import new_optimizer
from .pair import Pair
from .samples import Batch

META = torch.device("meta")


@dataclass(frozen=True)
class Estimate:
    """Bytes of one training process.

    Attributes:
        base: The frozen weights on the device.
        trained: The trained parameters.
        peak: All that lives at the peak of a step.
        host: What stays on the CPU: offloaded blocks.
    """

    base: int
    trained: int
    peak: int
    host: int = 0


class OnACard(TorchFunctionMode):
    """What a card does to tensors and "meta" does not: products in 16 bits by autocast, and attention without scores.

    Args:
        half: Whether autocast is on.
        norms: Whether norms are computed in float32, as autocast does on a card and not on a CPU.
    """

    def __init__(self, half: bool, norms: bool) -> None:
        super().__init__()
        self.half, self.norms = half, norms
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def forget(self) -> None:
        """Drops the copies of the weights, as autocast does when its block ends."""
        self._casts.clear()

    def again(self) -> OnACard:
        """For a block that is computed anew; autocast's copies of its weights end with it."""
        return OnACard(self.half, self.norms)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value")
            states = [self._low(args[i] if i < len(args) else kwargs[name]) for i, name in enumerate(names)]
            return _Kept.apply(*states)
        if self.half and func in _LOW:
            args, kwargs = tree_map(self._low, (args, kwargs))
        elif self.half and self.norms and func in _HIGH:
            args, kwargs = tree_map(_high, (args, kwargs))
        return func(*args, **kwargs)

    def _low(self, value: Any) -> Any:
        if not self.half or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._casts:
            self._casts[id(value)] = value, value.to(torch.bfloat16)
        return self._casts[id(value)][1]


class NumbersOnMeta(TorchFunctionMode):
    """Answers 1 where an optimizer asks a tensor without numbers for its number: Prodigy does, for its rate."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.item, Tensor.__bool__) and args[0].is_meta:
            return True if func is Tensor.__bool__ else 1.0
        return func(*args, **(kwargs or {}))


_LOW = (F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.addmm, torch.baddbmm)
_HIGH = (F.layer_norm, F.group_norm, torch.rsqrt, torch.pow, Tensor.pow, Tensor.rsqrt)
"""Operations that autocast runs in 16 bits, and those that it runs in float32 on a card (PyTorch's "amp" page)."""


def _high(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_half else value


class _Kept(torch.autograd.Function):
    """Attention without numbers: what is kept for the backward pass, and gradients of the right shapes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def estimate(
    build: Callable[[], Any],
    config: TrainConfig,
    *,
    size: tuple[int, int],
    text_tokens: int,
    dtype: torch.dtype,
    checkpointing: bool = False,
    offload: bool = False,
    norms: bool = True,
) -> Estimate:
    """Memory of one process with a whole copy of the model.

    What pooling adds is left out: of each block the pooled keys and values, smaller than its own by the squared down
    factor.

    Args:
        build: Makes the transformer; called under ``torch.device("meta")``.
        size: (height, width) of the pictures in pixels, multiples of the pixels of a token.
        text_tokens: Tokens of a caption, 1 or more.
        dtype: Of the model's own weights.
        checkpointing, offload: As in :func:`.set_up.set_up`.
        norms: As in :class:`OnACard`.

    Raises:
        ValueError: A size is out of range, or as the training itself.
        ImportError: As the training itself.
    """
    check_number("text_tokens", text_tokens, 1, whole=True)
    card = OnACard(dtype != torch.float32, norms)
    with META:
        transformer: Any = build().to(dtype).train(False)
    # Without its windows the student is the teacher's call with other weights; a window's kernel keeps as much.
    pair = Pair(transformer, ClearSpec(config.radius), rank=config.rank)
    pair.handle.remove()
    pixels = pair.shape.family.token_pixels
    for name, side in zip(("height", "width"), size, strict=True):
        check_number(name, side, pixels, whole=True)
        if side % pixels:
            raise ValueError(f"{name} is {side}; expected a multiple of {pixels} px.")
    if checkpointing or offload:
        pair.teaching.check_recomputes()
        transformer.enable_gradient_checkpointing(functools.partial(_recompute_on_a_card, card))
    quantise(pair, config.base, keep=False)
    on_host = offload_blocks(transformer, META) if offload else []
    return counted(pair, config, size, text_tokens, META, on_host, card)


def counted(
    pair: Pair,
    config: TrainConfig,
    size: tuple[int, int],
    text_tokens: int,
    device: torch.device,
    on_host: list[Any],
    card: OnACard | None = None,
) -> Estimate:
    """Runs two steps of a prepared pair and counts the second one.

    Args:
        on_host: Weights that are offloaded, and count only as the copies on the device.
        card: Stands for a card, on "meta".
    """
    trained = list(pair.trained().values())
    held = {id(tensor) for tensor in on_host}
    resident = [p for p in pair.transformer.parameters() if id(p) not in held]
    batch = _batch(pair, config, size, text_tokens, device)
    guidance = pair.teaching.scale(config.guidance)
    optimizer = new_optimizer(config, trained)
    peak = 0
    for _ in range(2):
        gc.collect()
        with MemoryCount(on_host) as count:
            for tensor in [*resident, *pair.transformer.buffers(), *_state(optimizer)]:
                count.add(tensor)
            _forward_and_back(pair, batch, guidance, device, card)
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            with NumbersOnMeta() if device == META else nullcontext():
                optimizer.step()
            optimizer.zero_grad()
        peak = count.peak
    own = {id(tensor) for tensor in trained}
    return Estimate(
        base=bytes_of(p for p in resident if id(p) not in own),
        trained=bytes_of(trained),
        peak=peak,
        host=bytes_of(on_host),
    )


def _forward_and_back(pair: Pair, batch: Batch, guidance: float, device: torch.device, card: OnACard | None) -> None:
    if card is None:
        with torch.autocast(device.type, torch.bfloat16, enabled=pair.compute_dtype != torch.float32):
            losses = distillation_losses(pair, batch, guidance)
        losses.total.backward()
        return
    with card:
        losses = distillation_losses(pair, batch, guidance)
    card.forget()
    losses.total.backward()


def _recompute_on_a_card(card: OnACard, block: Any, *args: Any) -> Any:
    """As diffusers recomputes a block; the backward pass runs in another thread, which knows nothing of the card."""
    return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), card.again()))


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]


def _batch(pair: Pair, config: TrainConfig, size: tuple[int, int], text_tokens: int, device: torch.device) -> Batch:
    family, widths = pair.shape.family, pair.teaching.widths(pair.transformer.config)
    cells = tuple(side // family.latent_pixels for side in size)
    latents = torch.zeros(config.batch, widths["latents"], *cells, device=device)
    text = {"prompt_embeds": torch.zeros(config.batch, text_tokens, widths["prompt_embeds"], device=device)}
    if "pooled" in widths:
        text["pooled"] = torch.zeros(config.batch, widths["pooled"], device=device)
    text |= {
        name: torch.zeros_like(text["pooled" if name.endswith("pooled") else "prompt_embeds"])
        for name in pair.teaching.needs(pair.transformer.config, pair.teaching.guidance)
        if name.startswith("negative")
    }
    return Batch(latents, text, torch.zeros_like(latents), torch.full((config.batch,), 0.5, device=device))
