"""Makes torch believe in an NVIDIA card, well enough for the compiler to write its code; nothing can run on it.

For a process of its own: what is replaced is torch's, and one part cannot be put back.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

# By compute capability times ten: multiprocessors and KB of shared memory of one program.
CARDS = {75: (40, 64), 80: (108, 163), 86: (82, 99), 89: (128, 99), 90: (132, 227), 100: (148, 227), 120: (170, 99)}

# "cuda" as the current device means nothing to a torch without it, nor to one without a driver.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
C10_REGISTER_GUARD_IMPL(XPU, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::XPU>)
C10_REGISTER_GUARD_IMPL(MPS, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS>)
"""


def missing() -> str | None:
    """What a pretended card needs and is not there, or None."""
    if sys.platform != "linux":
        return "needs Linux"
    return None if _compiler() else "needs a C++ compiler"


def _compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CXX", ""), "c++", "g++") if name and (found := shutil.which(name))), None
    )


def ignore_current_device() -> None:
    """Tensors that say they are on a CUDA, XPU or MPS device can be sliced from now on, in this whole process.

    Raises:
        RuntimeError: Something is missing.
        subprocess.CalledProcessError: The compiler failed.
    """
    if reason := missing():
        raise RuntimeError(f"A pretended card {reason}.")
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
        linked = ["-Wl,--no-as-needed", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        command = [str(_compiler()), *options, str(source), "-o", str(library), *linked]
        subprocess.run(command, check=True, capture_output=True)
        ctypes.CDLL(str(library))


@contextmanager
def pretended_card(capability: int) -> Generator[torch.device]:
    """Gives the device "cuda:0", a card of a compute capability times ten as torch's and Triton's compilers see it.

    Call :func:`ignore_current_device` first.
    """
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.fx_passes.post_grad as post_grad
    from torch._dynamo import device_interface
    from torch._subclasses import fake_tensor

    processors, shared_kb = CARDS[capability]
    properties = SimpleNamespace(
        name="a pretended card",
        gcnArchName="",
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=processors,
        shared_memory_per_block_optin=1024 * shared_kb,
        shared_memory_per_block=49152,
        shared_memory_per_multiprocessor=1024 * (shared_kb + 1),
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1536 if capability in (86, 89, 120) else 2048,
        max_threads_per_block=1024,
        warp_size=32,
        total_memory=24 * 2**30,
        L2_cache_size=40 * 2**20,
    )
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": divmod(capability, 10),
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state": state,
        "set_rng_state": None,
    }
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, value))

        for name, answer in answers.items():
            replace(torch.cuda, name, _always(answer))
            if name != "_lazy_init":
                replace(device_interface.CudaInterface, name, staticmethod(_always(answer)))
        replace(fake_tensor, "init_gpu_context", _always(None))
        # These look for patterns by tracing examples on the device; there is none of them in a single kernel.
        for passes in (joint_graph, post_grad):
            replace(passes, "lazy_init", _always(None))
        _set_triton_driver(capability)
        yield torch.device("cuda", 0)


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: answer


def _set_triton_driver(capability: int) -> None:
    """Not taken back: asking for Triton's own driver is an error where there is no card."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers = {
        "get_current_target": GPUTarget("cuda", capability, 32),
        "get_active_torch_device": torch.device("cuda", 0),
        "get_current_device": 0,
        "get_current_stream": 0,
        "is_active": True,
    }
    pretended: Any = SimpleNamespace(**{name: _always(answer) for name, answer in answers.items()})
    driver.set_active(pretended)
