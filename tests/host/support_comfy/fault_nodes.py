"""Custom nodes for test servers only: what other packs put on a model or a prompt, and a count of the model's calls."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

CALLED = "a test's model was called"
"""A line of the log for every call that was computed."""

TINY_WIDTH = 256
"""Of the tiny FLUX, which a file of a server cannot import."""


def own_forward(line: Callable[..., torch.Tensor], dtype: torch.dtype, embed: Any = None) -> Callable[[Any], Any]:
    """A pack (RES4LYF) that replaces the whole forward: it lays out tokens and calls no patch of the host's.

    Args:
        line: Positions along one side.
        dtype: Of the positions.
        embed: Makes rotations of (B, tokens, 3) ids; None asks the model's own embedder.
    """

    def forward(self: Any, x: torch.Tensor, timestep: Any, context: torch.Tensor, y: Any, guidance: Any, **_: Any):
        from comfy.ldm.flux.layers import timestep_embedding

        batch, _, height, width = x.shape
        rows, columns = height // 2, width // 2
        patches = x.unflatten(2, (rows, 2)).unflatten(4, (columns, 2)).permute(0, 2, 4, 1, 3, 5)
        img, txt = self.img_in(patches.reshape(batch, rows * columns, -1)), self.txt_in(context)
        ids = torch.zeros(batch, txt.shape[1] + rows * columns, 3, dtype=dtype)
        ids[:, txt.shape[1] :, 1] = line(rows, dtype).repeat_interleave(columns)
        ids[:, txt.shape[1] :, 2] = line(columns, dtype).repeat(rows)
        vec = self.time_in(timestep_embedding(timestep, 256)) + self.vector_in(y)
        vec = vec + self.guidance_in(timestep_embedding(guidance, 256))
        pe = (embed or self.pe_embedder)(ids)
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe)
        out = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            out = block(out, vec=vec, pe=pe)
        out = self.final_layer(out[:, txt.shape[1] :], vec).reshape(batch, rows, columns, -1, 2, 2)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)

    def on(model: Any) -> Any:
        clone = model.clone()
        flux = clone.get_model_object("diffusion_model")
        clone.add_object_patch("diffusion_model.forward", MethodType(forward, flux))
        return clone

    return on


def lined(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(0, count - 1, count, dtype=dtype)


def masked_control(mask: torch.Tensor) -> Any:
    """A ControlNet whose residual acts under its mask (1, h, w), kept as Advanced-ControlNet keeps it."""
    from comfy.controlnet import ControlBase

    class MaskedControl(ControlBase):
        def get_control(self, x: torch.Tensor, *_: Any) -> Any:
            size = (x.shape[-2] // 2, x.shape[-1] // 2)
            under = torch.nn.functional.interpolate(self.mask_cond_hint_original[None], size=size).flatten(1)
            residual = under[..., None].to(x.dtype) * torch.linspace(-1, 1, TINY_WIDTH)
            return {"input": [residual], "output": []}

        def copy(self) -> Any:
            made = MaskedControl()
            self.copy_to(made)
            made.mask_cond_hint_original = self.mask_cond_hint_original
            return made

    control = MaskedControl()
    control.mask_cond_hint_original = mask
    return control


class ClearTestCalls:
    """A model that writes :data:`CALLED` for every call.

    With ``answers``, a share of its input stands in its place: from step to step, every part of the picture changes by
    the same share, which is what a cache goes by.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "answers": ("BOOLEAN", {"default": False})}}

    def make(self, model, answers):
        def call(executor, x, t, text, *args, **kwargs):
            print(CALLED, flush=True)
            if not answers:
                return executor(x, t, text, *args, **kwargs)
            executor.class_obj.pe_embedder(torch.zeros(1, text.shape[1] + x.shape[-2] * x.shape[-1] // 4, 3))
            return 0.3 * x

        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "calls", call)
        return (clone,)


class ClearTestOwnForward:
    """A model with :func:`own_forward` in place of its own."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        return (own_forward(lined, torch.float32)(model),)


class ClearTestMaskedControl:
    """A prompt with a ControlNet that acts under a mask."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "mask": ("MASK",)}}

    def make(self, conditioning, mask):
        control = {"control": masked_control(mask), "control_apply_to_uncond": False}
        return ([[text, {**extras, **control}] for text, extras in conditioning],)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ClearTestCalls, ClearTestOwnForward, ClearTestMaskedControl)}
