"""Attention calls with fewer queries than keys: the rest of the sequence was attended to before, and is kept.

Source: ``comfy_extras.nodes_flux.FluxKVCache``, whose later calls leave out the queries of reference tokens, and later
hosts, whose models call attention for image tokens and for what stands before them one after the other.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from ....clear_core.layout import SequenceLayout
from .attention_form import AttentionForm


def completed(
    q: Tensor, k: Tensor, layout: SequenceLayout, beside: int, form: AttentionForm
) -> tuple[Tensor, SequenceLayout, slice] | None:
    """Queries for every key, so that windows can be computed, or None if it is not known which ones there are.

    The window of an image row needs queries of text and reference tokens too; zeros stand for them. They are few.

    Args:
        q: (B, heads, queries, D).
        k: (B, heads, keys, D).
        layout: The sequence that is expected.
        beside: Tokens after the image, by the inputs of the call.
        form: How the model attends.

    Returns:
        Queries, the sequence of the keys, and which of the queries are those of ``q``.
    """
    if form.text != "before" or q.ndim != 4 or k.ndim != 4:
        return None
    queries, keys = q.shape[2], k.shape[2]
    if queries == layout.length and layout.reference == 0 and keys == queries + beside:
        return pad(q, (0, 0, 0, beside)), replace(layout, reference=beside), slice(0, queries)
    text = keys - layout.image - beside
    if queries == layout.image and text >= 0:
        return pad(q, (0, 0, text, beside)), replace(layout, text=text, reference=beside), slice(text, text + queries)
    return None
