"""The log-sum-exp of a card's own kernel, imitated on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import lse
from clear_core.attention.backends import gather

CPU = torch.device("cpu")


def tensors(layout):
    return torch.randn(3, 1, 4, layout.length, 32, generator=torch.Generator().manual_seed(0)).unbind()


def of_a_card(q, k, v, mask, compute_log_sumexp, *, scale):
    """As the memory-efficient kernel: rows of a mask must be aligned, and the log-sum-exp is filled up to 32 rows."""
    assert compute_log_sumexp and (mask is None or (mask.shape == (*q.shape[:3], k.shape[2])))
    assert mask is None or mask.stride(-2) * mask.element_size() % 16 == 0
    sums = lse.log_sum_exp(q, k, scale, mask)
    filled = F.pad(sums, (0, -q.shape[2] % 32), value=torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale), filled, None, None


@pytest.fixture
def card_kernel(monkeypatch):
    """The CPU, which takes the way of a card."""
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", of_a_card)
    monkeypatch.setattr(lse, "_kernel", lambda *case: lse._by_card)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("spec", [ClearSpec(5), ClearSpec(4, 2)], ids=str)
def test_pooled_keys_stand_apart_on_cards_too(spec, masked, card_kernel, monkeypatch):
    monkeypatch.setattr(gather, "MANY_POOLED", 1)
    layout = SequenceLayout(9, (21, 34), 5)
    q, k, v = tensors(layout)
    options = {"grid": layout.grid, "spec": spec, "reference_tokens": 5, "return_lse": True}
    if masked:
        options["bias"] = torch.rand(1, 1, layout.length, layout.text, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = clear_attention(q, k, v, backend="dense", **options)
    for found, wanted in zip(clear_attention(q, k, v, backend="gather", **options), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=3e-6)


def test_a_card_whose_kernel_is_off_is_not_asked_for_its_sums(card_kernel, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *arguments: arguments)
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", lambda *arguments: True)
    assert lse._card_is_right(CPU, torch.float32, 32)

    def wrong(*arguments, **options):
        out, sums, *rest = of_a_card(*arguments, **options)
        return out, sums / 0.693, *rest

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", wrong)
    assert not lse._card_is_right(CPU, torch.float32, 32)
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", lambda *arguments: False)
    assert not lse._card_is_right(CPU, torch.float32, 32)
