"""A custom node for test servers only: conditioning without text encoders. Copied into their custom_nodes."""

import os
import sys
import threading

import torch


class ClearTestConditioning:
    """Seeded text tokens for the tiny FLUX (width 64, pooled 32)."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "tokens": ("INT", {"default": 24}),
                "guidance": ("FLOAT", {"default": 3.5}),
            }
        }

    def make(self, seed, tokens, guidance):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, 64, generator=generator)
        pooled = torch.randn(1, 32, generator=generator)
        return ([[context, {"pooled_output": pooled, "guidance": guidance}]],)


class ClearTestList:
    """A list of what its inputs give, of any type."""

    RETURN_TYPES = ("*",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {f"item{number}": ("*",) for number in range(3)}}

    def make(self, **items):
        return ([items[name] for name in sorted(items)],)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ClearTestConditioning, ClearTestList)}


def end_with_the_test() -> None:
    """Ends this server when its standard input closes, also if the test process was killed."""
    sys.stdin.buffer.read()
    os._exit(0)


if os.environ.get("CLEAR_TEST_SERVER"):
    # ComfyUI 0.9's log fails on a progress bar if nothing was written before it, as with --verbose WARNING.
    print("test-only node: ready", flush=True)
    threading.Thread(target=end_with_the_test, daemon=True).start()
