"""An attention of the comparison on every block of a diffusers FLUX, ready to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from clear_core import SequenceLayout
from clear_core.integrations.frame import read_frame
from clear_core.weights.trained_set import FLUX1_SET

from ..block_processor import BlockProcessor
from .attention import Attention

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


class AttentionProcessor(BlockProcessor):
    """Attention of one block.

    Attributes:
        attention: Which one.
        block: Index of the block, double blocks first.
        weight: The block's trainable weight, or None.
        layout: Of the call that runs.
    """

    def __init__(self, attention: Attention, block: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.attention, self.block = attention, block
        first = attention.first_weight(heads, head_size)
        self.weight = None if first is None else nn.Parameter(first)
        self.layout: SequenceLayout | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.layout is not None, "the hook of the whole model comes before its blocks"
        return self.attention(q, k, v, self.layout, self.block, self.weight)


@dataclass(frozen=True)
class PutOn:
    """An attention on a model.

    Attributes:
        trained: What the paper trains, by name: the image's projections of the attention layers, and the attention's
            own weights. They ask for gradients, and nothing else does meanwhile.
    """

    model: FluxTransformer2DModel
    trained: dict[str, nn.Parameter]
    _hook: Any
    _before: list[tuple[Any, Any]]
    _asked: dict[nn.Parameter, bool]

    def take_off(self) -> None:
        """Gives the blocks what they attended with before; trained projections stay as they are."""
        self._hook.remove()
        for attn, processor in self._before:
            attn.set_processor(processor)
        for parameter, asked in self._asked.items():
            parameter.requires_grad_(asked)


def put_on(model: FluxTransformer2DModel, attention: Attention) -> PutOn:
    """Lets every block of a model attend by an attention, with a weight of its own for each block.

    The grid is read from the position ids of each call, which are handed over by name (``img_ids=``), as
    ``clear_core.integrations.flux_denoiser.flux_call`` does it.
    """
    blocks: list[Any] = [*model.transformer_blocks, *model.single_transformer_blocks]
    before = [(block.attn, block.attn.processor) for block in blocks]
    ours: list[AttentionProcessor] = []
    for index, (attn, _) in enumerate(before):
        processor = AttentionProcessor(attention, index, attn.heads, attn.inner_dim // attn.heads)
        ours.append(processor.to(attn.to_q.weight.device))
        attn.set_processor(ours[-1])

    def read_layout(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frame = read_frame(kwargs["img_ids"])
        layout = SequenceLayout(kwargs["encoder_hidden_states"].shape[1], frame.grid, frame.reference)
        for processor in ours:
            processor.layout = layout

    hook = model.register_forward_pre_hook(read_layout, with_kwargs=True)
    counts = len(model.transformer_blocks), len(model.single_transformer_blocks)
    wanted = {*FLUX1_SET.names(*counts)}
    trained: dict[str, nn.Parameter] = {}
    asked: dict[nn.Parameter, bool] = {}
    for name, parameter in model.named_parameters():
        asked[parameter] = parameter.requires_grad
        if name in wanted or ".attn.processor." in name:
            trained[name] = parameter
        parameter.requires_grad_(name in trained)
    return PutOn(model, trained, hook, before, asked)
