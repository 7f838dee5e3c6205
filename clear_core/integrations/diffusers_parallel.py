"""diffusers' context parallelism with CLEAR: what each process holds of a call, and how it attends.

diffusers cuts the sequence by hooks that ``enable_parallelism`` puts on the model, and leaves attention to processors.
Source: diffusers 0.42, ``models/_modeling_parallel.py``, ``hooks/context_parallel.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..attention import AttentionBias, clear_attention
from ..effective import Effective
from ..parallel import ProcessPeers, attend_by_heads, clear_attention_strip, split_rows
from ..wording import quoted

Way = Literal["strips", "heads"]

# Dimension along which each input is cut, and the number of its dimensions.
_INPUTS: dict[str, dict[str, tuple[int, int]]] = {
    "strips": {"hidden_states": (1, 3), "img_ids": (0, 2)},
    "heads": {"hidden_states": (1, 3), "encoder_hidden_states": (1, 3), "img_ids": (0, 2), "txt_ids": (0, 2)},
}
_SPLIT_HOOK = "cp_input---"
_HOOKS = (_SPLIT_HOOK, "cp_output---")


@dataclass(frozen=True, eq=False)
class Part:
    """What the processes hold of one call.

    Attributes:
        way: How they attend.
        peers: The processes.
        texts: Text tokens of each; with strips everyone holds all of them.
        images: Image and reference tokens of each, in the order of the sequence.
    """

    way: Way
    peers: ProcessPeers
    texts: tuple[int, ...]
    images: tuple[int, ...]

    @property
    def text(self) -> int:
        """Text tokens of this process."""
        return self.texts[self.peers.rank]

    def own_image(self, tokens: Tensor, dim: int) -> Tensor:
        """The own part of all image and reference tokens, which lie along ``dim``."""
        return tokens.split(self.images, dim)[self.peers.rank]

    def own(self, tokens: Tensor) -> Tensor:
        """The own part of a whole sequence (L, D): text, then image and references."""
        whole = sum(self.images)
        text, image = tokens[: len(tokens) - whole], tokens[len(tokens) - whole :]
        if self.way == "heads":
            text = text.split(self.texts)[self.peers.rank]
        return torch.cat([text, self.own_image(image, 0)])

    def attend(self, effective: Effective, weight: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the own tokens to the whole sequence.

        Args:
            effective: Of the whole call.
            weight: Pooling weights; None if the spec does not pool.
            q, k, v: (B, heads, own tokens, D): text, then image.

        Returns:
            As q in shape and dtype.
        """
        if self.way == "strips":
            return clear_attention_strip(
                q,
                k,
                v,
                peers=self.peers,
                grid=effective.layout.grid,
                spec=effective.spec,
                spatial_weight=weight,
                scale=effective.scale,
                backend=effective.backend,
            )
        return attend_by_heads(
            lambda q, k, v: attend_whole(effective, weight, q, k, v),
            q,
            k,
            v,
            peers=self.peers,
            text_tokens=self.texts,
            tokens=[text + image for text, image in zip(self.texts, self.images, strict=True)],
        )


class ContextParallel:
    """How one transformer with CLEAR runs on several processes.

    Attributes:
        way: "strips" or "heads"; None if it does not.
        peers: The processes of the last call; None before the first, and as long as there is one process.
    """

    def __init__(self, way: Way | None) -> None:
        if way not in (None, *_INPUTS):
            raise ValueError(f"parallel is {quoted(way)}; expected None, 'strips' or 'heads'.")
        self.way: Way | None = way
        self.peers: ProcessPeers | None = None
        self._config: Any = None

    def plan(self) -> dict[str, Any] | None:
        """For ``enable_parallelism(cp_plan=...)``; None without a way.

        Raises:
            ImportError: The installed diffusers has no context parallelism.
        """
        if self.way is None:
            return None
        try:
            from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
        except ImportError as error:
            raise ImportError(
                f"parallel={quoted(self.way)} needs diffusers 0.36 or later, which has context parallelism."
            ) from error
        inputs = {name: ContextParallelInput(*dims) for name, dims in _INPUTS[self.way].items()}
        return {"": inputs, "proj_out": ContextParallelOutput(1, 3)}

    def part(self, transformer: Any, effective: Effective) -> Part | None:
        """What the processes hold of a call; None as long as there is one process.

        Args:
            transformer: The model.
            effective: Of the whole call.

        Raises:
            ValueError: The sequence cannot be cut in this way, or diffusers cuts it in another.
        """
        config = context_config(transformer)
        if config is None:
            return None
        if self.way is None:
            raise ValueError(
                "context parallelism is on, but CLEAR was applied for one process; apply it with parallel='strips' or "
                "'heads', and call enable_parallelism with the handle's cp_plan."
            )
        if config.ring_degree > 1:
            raise ValueError(
                f"the ContextParallelConfig has a ring_degree of {config.ring_degree}, which CLEAR does not take; "
                "set ulysses_degree alone."
            )
        if set(_inputs_cut(transformer)) != set(_INPUTS[self.way]):
            raise ValueError(
                f"diffusers cuts the sequence by another plan than parallel={quoted(self.way)} needs; apply CLEAR "
                "first, then call enable_parallelism(config=..., cp_plan=handle.cp_plan)."
            )
        ranks = config._flattened_mesh.size()
        texts, images = _checked_parts(self.way, effective, ranks, getattr(config, "ulysses_anything", False))
        if self._config is not config:
            self.peers, self._config = ProcessPeers(config._flattened_mesh.get_group()), config
        return Part(self.way, cast(ProcessPeers, self.peers), texts, images)


def attend_whole(
    effective: Effective, weight: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None = None
) -> Tensor:
    """Attention of all tokens of a call, (B, heads, L, D) each, by one process."""
    layout = effective.layout
    out = clear_attention(
        q,
        k,
        v,
        grid=layout.grid,
        spec=effective.spec,
        spatial_weight=weight,
        scale=effective.scale,
        reference_tokens=layout.reference,
        bias=bias,
        backend=effective.backend,
    )
    assert isinstance(out, Tensor)  # no log-sum-exp was asked for
    return out


def context_config(transformer: Any) -> Any | None:
    """diffusers' ``ContextParallelConfig`` that the model runs by; None if it does not."""
    return getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)


def disable(transformer: Any) -> None:
    """Takes diffusers' context parallelism off a model: every process computes the whole again."""
    for module, name in _hooks(transformer):
        module._diffusers_hook.remove_hook(name, recurse=False)
    transformer._parallel_config = None


def _checked_parts(way: Way, effective: Effective, ranks: int, uneven: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Text and image tokens of each rank; refuses what cannot be cut."""
    layout = effective.layout
    (height, width), step = layout.grid, effective.spec.down_factor
    tokens = layout.image + layout.reference
    if way == "heads":
        if not uneven and (layout.text % ranks or tokens % ranks):
            raise ValueError(
                f"{layout.text} text tokens and {tokens} image tokens cannot both be cut into {ranks} equal parts; set "
                "ulysses_anything=True in the ContextParallelConfig, or choose a prompt length and a size that can."
            )
        return _even(layout.text, ranks), _even(tokens, ranks)
    if layout.reference:
        raise ValueError(
            f"parallel='strips' does not take the {layout.reference} reference tokens of this call; use 'heads'."
        )
    # diffusers cuts by tokens, wherever that is; strips are cut between rows.
    images = tuple(len(rows) * width for rows in split_rows(height, ranks, multiple=step))
    if height % ranks or images != _even(tokens, ranks):
        steps = f" whose rows are multiples of the down factor {step}" if step > 1 else ""
        raise ValueError(
            f"a grid of {height} x {width} tokens cannot be cut into {ranks} equal strips{steps}; choose a height of a "
            f"multiple of {16 * ranks * step} pixels, another number of processes, or parallel='heads'."
        )
    return (layout.text,) * ranks, images


def _even(tokens: int, ranks: int) -> tuple[int, ...]:
    """Tokens of each rank as ``torch.tensor_split`` deals them out."""
    each, more = divmod(tokens, ranks)
    return tuple(each + (rank < more) for rank in range(ranks))


def _hooks(transformer: Any) -> Iterator[tuple[Any, str]]:
    """(module, name) of each hook of context parallelism."""
    for module in list(transformer.modules()):
        registry = getattr(module, "_diffusers_hook", None)
        for name in [] if registry is None else list(registry.hooks):
            if name.startswith(_HOOKS):
                yield module, name


def _inputs_cut(transformer: Any) -> Iterator[str]:
    """Names of the model's inputs that diffusers cuts."""
    for module, name in _hooks(transformer):
        if module is transformer and name == _SPLIT_HOOK:
            yield from module._diffusers_hook.hooks[name].metadata
