"""What a backend is. A new one is a file here and a line in the registry of :mod:`..choose`."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch

from ..call import Attended, AttentionCall, CallKind


class Backend(Protocol):
    """One way to compute CLEAR attention. A backend imports no other backend.

    Attributes:
        name: What users write.
        title: The subject of a sentence about it.
        instead: What results come from, as the end of a sentence.
        takes_bias: Whether it takes attention masks; calls that have one are handed over to gathered tiles if not.
        compiled: Whether its kernel is compiled here: it is then tested beside the reference before its first use, and
            may raise :class:`KernelError`, after which it is not used again.
    """

    name: str
    title: str
    instead: str
    takes_bias: bool
    compiled: bool

    def unavailable(self, kind: CallKind) -> str | None:
        """Why such calls cannot run, as the end of "cannot run here because ..."; None if they can.

        Says it without compiling anything.
        """
        ...

    def preferred(self, kind: CallKind) -> str | None:
        """One sentence that says why "auto" should take it for such calls; None if it should not."""
        ...

    def run(self, call: AttentionCall) -> Attended:
        """Computes the rows of q. ``lse`` is None exactly if ``call.return_lse`` is False.

        Raises:
            KernelError: The kernel cannot be compiled or run.
        """
        ...


NO_TRITON = "Triton is not installed"
"""The end of a sentence, by which texts for users know this reason."""


def no_triton() -> str | None:
    """The reason if Triton is missing. Asked last: if it is told, Triton is all that is missing."""
    return None if importlib.util.find_spec("triton") else NO_TRITON


# Older cards have no bfloat16 and too little shared memory; what Triton compiles for them fails or uses no tensor core.
OLDEST_CAPABILITY = (8, 0)


def too_old(device: torch.device) -> str | None:
    """Why kernels that Triton compiles are not for this CUDA device, as the end of a sentence; None if they are."""
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST_CAPABILITY:
        return None
    return f"it needs compute capability 8.0 and above, and {device} has {'.'.join(map(str, capability))}"


class KernelError(RuntimeError):
    """A kernel could not be compiled or run. The message is one line.

    Attributes:
        backend: Name of the backend.
        no_memory: Whether memory was short, which says nothing about the kernel.
    """

    def __init__(self, backend: str, cause: BaseException) -> None:
        line = (str(cause).strip() or "no message").splitlines()[0]
        super().__init__(f"{type(cause).__name__}: {line}")
        self.backend = backend
        self.no_memory = "out of memory" in str(cause).lower()
