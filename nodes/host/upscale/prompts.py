"""What an entry of the host's conditioning, (text, extras), is made of.

Source: ``comfy.samplers``, ``comfy.controlnet.ControlBase``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def tensors_of(prompt: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one entry of a conditioning, each with its name; the mask has rules of its own."""
    text, extras = prompt[0], prompt[1]
    for name, value in {"text": text, **extras}.items():
        if name != "mask":
            parts = value if isinstance(value, (list, tuple)) else (value,)
            yield from ((name, part) for part in parts if isinstance(part, Tensor))
    for control in controls_of(prompt):
        hint = getattr(control, "cond_hint_original", None)
        if isinstance(hint, Tensor):
            yield "hint of its ControlNet", hint


def controls_of(prompt: Any) -> Iterator[Any]:
    """The ControlNets of one entry of a conditioning, each a ``comfy.controlnet.ControlBase``."""
    control = prompt[1].get("control")
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)
