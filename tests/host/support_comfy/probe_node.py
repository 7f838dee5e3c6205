"""A custom node for test servers only: what is alive in the server, and runs that end badly at a chosen place.

``GET /clear_test/state`` collects garbage, empties this pack's bounded caches and answers with counts;
``GET /clear_test/now`` tells at once whether a run waits to be interrupted, and how many models are loaded.
"""

import contextlib
import ctypes
import functools
import gc
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from aiohttp import web
from server import PromptServer

PLACES = ("block", "encode", "decode")
KINDS = ("error", "memory", "interrupt")
PACK = "clear-flux"
WATCHED = ("comfy", "comfy_extras", "comfy_execution", "comfy_api", "nodes", "execution", "server", "latent_preview")
WATCHED_TORCH = ("torch.nn.functional", "torch.nn.modules.module", "torch.nn.modules.linear", "torch")

waiting = threading.Event()


def end_badly(kind):
    """Ends the running prompt: by an error, by a simulated lack of memory, or by the interrupt it waits for."""
    if kind == "error":
        raise RuntimeError("a test's own error")
    if kind == "memory":
        raise comfy.model_management.OOM_EXCEPTION("tried to allocate 99 GiB")
    waiting.set()
    try:
        for _ in range(3000):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
    finally:
        waiting.clear()
    raise RuntimeError("nobody interrupted this run")


class ClearTestFault:
    """A model whose second single block ends the run at a chosen call."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (KINDS,), "call": ("INT", {"default": 1})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")  # The count of calls starts anew in every run.

    def make(self, model, kind, call):
        calls = []

        def block(args, extra):
            calls.append(None)
            if len(calls) == call:
                end_badly(kind)
            return extra["original_block"](args)

        clone = model.clone()
        clone.set_model_patch_replace(block, "dit", "single_block", 1)
        return (clone,)


class FaultyPixels:
    """A VAE around another one that ends the run when it is asked to encode or to decode."""

    def __init__(self, vae, kind, place):
        self.vae, self.kind, self.place = vae, kind, place

    def encode(self, pixels):
        if self.place == "encode":
            end_badly(self.kind)
        return self.vae.encode(pixels)

    def decode(self, samples):
        if self.place == "decode":
            end_badly(self.kind)
        return self.vae.decode(samples)


class ClearTestFaultyPixels:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "kind": (KINDS,), "place": (PLACES,)}}

    def make(self, vae, kind, place):
        return (FaultyPixels(vae, kind, place),)


NODE_CLASS_MAPPINGS = {"ClearTestFault": ClearTestFault, "ClearTestFaultyPixels": ClearTestFaultyPixels}


def callables():
    """Ids of the functions and classes of the host and of torch by name, methods included."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in WATCHED and name not in WATCHED_TORCH:
            continue
        for key, value in list(vars(module).items()):
            if not callable(value):
                continue
            found[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                found |= {f"{name}.{key}.{part}": id(own) for part, own in vars(value).items() if callable(own)}
    return found


at_start = {}


def changed_callables():
    now = callables()
    if not at_start:
        at_start.update(now)
    return sorted(name for name in at_start.keys() & now.keys() if at_start[name] != now[name])


@functools.lru_cache(maxsize=1)
def libc():
    return ctypes.CDLL("libc.so.6")


def give_back():
    """Lets the allocator return to the system what it does not need."""
    with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
        libc().malloc_trim(0)


def resident_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def clear_caches():
    """Empties this pack's caches that are bounded by number or bytes, and returns the names of unbounded ones."""
    objects = gc.get_objects()
    caches = [each for each in objects if type(each) is functools._lru_cache_wrapper]
    for kept in objects:
        if type(kept).__name__ == "KeptValues" and PACK in type(kept).__module__:
            kept.clear()
    own = [each for each in caches if PACK in str(each.__module__)]
    for cache in own:
        cache.cache_clear()
    return sorted(cache.__qualname__ for cache in own if cache.cache_parameters()["maxsize"] is None)


def is_patcher(kind):
    return any(base.__name__ == "ModelPatcher" for base in kind.__mro__)


def leaves(value):
    """How many things there are in dictionaries and lists of any depth."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return 1 if items is None else sum(map(leaves, items))


def put_on(patcher):
    """How much is put on a clone of a model: wrappers and other functions, object and weight patches."""
    functions = (patcher.wrappers, patcher.callbacks, patcher.attachments, patcher.model_options)
    return [*map(leaves, functions), len(patcher.object_patches), len(patcher.patches)]


def patches_of(patcher):
    """The same, and what was put aside for patches while the model is in memory."""
    return [*put_on(patcher), len(patcher.object_patches_backup), len(patcher.backup)]


def state():
    unbounded = clear_caches()
    for _ in range(2):
        gc.collect()
    give_back()
    objects = gc.get_objects()
    kinds = [type(each) for each in objects]
    own = Counter(kind.__qualname__ for kind in kinds if PACK in str(kind.__module__))
    tensors = {id(each): each for each, kind in zip(objects, kinds, strict=True) if issubclass(kind, torch.Tensor)}
    modules = [each for each, kind in zip(objects, kinds, strict=True) if issubclass(kind, torch.nn.Module)]
    storages = {}
    for tensor in tensors.values():
        try:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        except (RuntimeError, NotImplementedError):
            pass
    everywhere = torch.nn.modules.module
    hooks = sum(
        len(getattr(everywhere, name)) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
    ) + sum(len(vars(each)[name]) for each in modules for name in ("_forward_hooks", "_forward_pre_hooks"))
    hook = comfy.utils.PROGRESS_BAR_HOOK
    return {
        "resident": resident_bytes(),
        "objects": len(objects),
        "kinds": dict(Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds).most_common(400)),
        "own": own,
        "tensors": len(tensors),
        "tensor_bytes": sum(storages.values()),
        "modules": len(modules),
        "hooks": hooks,
        "own_forwards": sum("forward" in vars(each) for each in modules),
        "put_on": sorted(put_on(each) for each, kind in zip(objects, kinds, strict=True) if is_patcher(kind)),
        "patches": sorted(patches_of(each) for each, kind in zip(objects, kinds, strict=True) if is_patcher(kind)),
        "loaded": len(comfy.model_management.current_loaded_models),
        "threads": sorted(re.sub(r"\d+", "#", thread.name) for thread in threading.enumerate()),
        "system_threads": len(list(Path("/proc/self/task").iterdir())),
        "progress_hook": None if hook is None else f"{hook.__module__}.{hook.__qualname__}",
        "changed": changed_callables(),
        "unbounded": unbounded,
        "settings": {
            "dtype": str(torch.get_default_dtype()),
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "flags": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()],
        },
    }


@PromptServer.instance.routes.get("/clear_test/state")
async def get_state(request):
    return web.json_response(state())


@PromptServer.instance.routes.get("/clear_test/now")
async def get_now(request):
    loaded = len(comfy.model_management.current_loaded_models)
    return web.json_response({"waiting": waiting.is_set(), "loaded": loaded})
