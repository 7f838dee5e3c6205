"""Which backend runs a call. One check serves the choice and the messages about it alike."""

from __future__ import annotations

import logging

import torch

from ..spec import ClearSpec
from ..wording import quoted
from .backends.base import Backend, KernelError
from .backends.dense import DENSE
from .backends.flex.backend import FLEX
from .backends.gather import GATHER
from .backends.triton.backend import TRITON
from .call import Attended, AttentionCall, CallKind, padded_head_dim
from .first_use import first_use
from .self_test import run_self_test

logger = logging.getLogger(__name__)

REGISTRY: list[Backend] = [DENSE, GATHER, TRITON, FLEX]
"""All backends in order of preference; "auto" takes gathered tiles if none of them wants the call and can run it."""

BACKENDS = ("auto", *(backend.name for backend in REGISTRY))
"""Names that ``clear_attention`` takes as ``backend``."""

# Causes, and what ran instead.
_logged: set[tuple[str, str]] = set()

# A kernel: backend, device, dtype, padded head size, whether gradients and log-sum-exp are wanted, and whether the
# pooled keys are an overview.
_Kernel = tuple[str, torch.device, torch.dtype, int, bool, bool, bool]

# What self-tests said.
_verdicts: dict[_Kernel, str | None] = {}

# Kernels that failed after their self-test, and the error; they are not tried again.
_dropped: dict[_Kernel, str] = {}


def explain_backend(
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    grid: tuple[int, int],
    spec: ClearSpec,
    backend: str = "auto",
) -> tuple[str, str]:
    """The backend that runs calls of this kind, without a mask or gradients, and one sentence why.

    Args:
        backend: The one that was asked for. If it cannot run here, calls are refused; the sentence says so.
    """
    kind = CallKind(_indexed(torch.device(device)), dtype, head_dim, grid, spec.within(grid))
    if backend == "auto":
        chosen, why, _ = _choose(kind)
        return chosen.name, why
    asked = _backend(backend)
    if reason := _hand_over(asked, kind):
        return GATHER.name, f"{asked.title} is not used because {reason}."
    if reason := _refusal(asked, kind):
        return asked.name, f"It was asked for by name, but cannot run here: {reason}."
    return asked.name, "It was asked for by name."


def unavailable_reason(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    needs_grad: bool = False,
    return_lse: bool = False,
) -> str | None:
    """Why a backend cannot run, as the end of a sentence; None if it can.

    The first question about "flex" or "triton" compiles a small self-test, which takes seconds.

    Args:
        name: One of :data:`BACKENDS`.
        needs_grad: Whether gradients are wanted.
        return_lse: Whether the log-sum-exp is wanted.
    """
    if name == "auto":
        return None
    backend = _backend(name)
    # Grid and window are not known here; no backend is unavailable because of them.
    kind = CallKind(_indexed(device), dtype, head_dim, (1, 1), ClearSpec(1), needs_grad, return_lse)
    return _hand_over(backend, kind) or _refusal(backend, kind)


def device_fault(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why no backend is right on a device, as the end of a sentence; None if one is.

    The first question about a device whose attention is known for faults runs a small self-test.
    """
    return unavailable_reason(GATHER.name, device, dtype, head_dim) if _is_unproven(device) else None


def run_backend(name: str, call: AttentionCall) -> Attended:
    """Runs the backend of that name, or the one that "auto" stands for.

    Raises:
        ValueError: There is no such backend, or it cannot run here.
    """
    kind = call.kind
    if name == "auto":
        backend, _, passed_over = _choose(kind)
        if passed_over is not None:
            _log_once(passed_over, backend)
    else:
        backend = _backend(name)
        reason = _hand_over(backend, kind)
        if reason is not None:
            _log_once(f"{backend.title} is not used because {reason}.", GATHER)
            backend = GATHER
        elif (reason := _refusal(backend, kind)) is not None:
            raise ValueError(f"backend is {quoted(name)}, but {reason}; use 'auto' or 'gather'.")
    if backend is GATHER and (reason := device_fault(kind.device, kind.dtype, kind.head_dim)) is not None:
        raise ValueError(f"windows cannot be computed on {kind.device}: {reason}; use another version of torch.")
    try:
        return backend.run(call)
    except KernelError as error:
        if not error.no_memory:
            _dropped[_kernel(backend, kind)] = str(error)
        _log_once(f"{backend.title} is not used because its kernel failed ({error}).", GATHER)
    # The next call may find another kernel.
    return GATHER.run(call)


def _choose(kind: CallKind) -> tuple[Backend, str, str | None]:
    """What "auto" takes.

    Returns:
        The backend, one sentence why, and the same sentence if a preferred backend had to be passed over, else None.
    """
    passed_over: str | None = None
    for backend in REGISTRY:
        why = backend.preferred(kind)
        if why is None:
            continue
        reason = _hand_over(backend, kind) or _refusal(backend, kind)
        if reason is None:
            return backend, passed_over or why, passed_over
        passed_over = passed_over or f"{backend.title} is not used because {reason}."
    return GATHER, passed_over or "Gathered tiles run everywhere.", passed_over


def check_backend(name: str) -> None:
    """Whether there is a backend of that name, or it is "auto"; asked before any long work.

    Raises:
        ValueError: There is none.
    """
    if name != "auto":
        _backend(name)


def _indexed(device: torch.device) -> torch.device:
    """A device as tensors on it name it: "cuda" is "cuda:0", under which failures are kept."""
    if device == torch.device("cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _backend(name: str) -> Backend:
    for backend in REGISTRY:
        if backend.name == name:
            return backend
    raise ValueError(f"backend is {quoted(name)}; expected one of auto, {', '.join(one.name for one in REGISTRY)}.")


def _refusal(backend: Backend, kind: CallKind) -> str | None:
    """Why such a call cannot run here at all, self-test included, as the end of a sentence; None if it can."""
    reason = backend.unavailable(kind)
    if reason is None and (backend.compiled or _is_unproven(kind.device)):
        return _self_test(backend, kind._replace(head_dim=padded_head_dim(kind.head_dim)))
    return reason


def _hand_over(backend: Backend, kind: CallKind) -> str | None:
    """Why gathered tiles stand in for a backend that may run otherwise, as the end of a sentence; None if not."""
    if kind.masked and not backend.takes_bias:
        return "it takes no attention mask"
    if _dropped and (error := _dropped.get(_kernel(backend, kind))) is not None:
        return f"its kernel failed ({error})"
    return None


def _kernel(backend: Backend, kind: CallKind) -> _Kernel:
    return backend.name, kind.device, kind.dtype, kind.head_dim, kind.needs_grad, kind.return_lse, kind.spec.overview


def _log_once(cause: str, backend: Backend) -> None:
    """Says once why a backend is passed over, and which one computes the same instead."""
    if (cause, backend.name) not in _logged:
        _logged.add((cause, backend.name))
        logger.warning("CLEAR attention: %s The results are the same, from %s.", cause, backend.instead)


def _is_unproven(device: torch.device) -> bool:
    """Whether torch's own attention is known to be wrong on some devices of this kind: gathered tiles rest on it."""
    return device.type not in ("cpu", "cuda") or (device.type == "cuda" and torch.version.hip is not None)


def _self_test(backend: Backend, kind: CallKind) -> str | None:
    """Why a kernel fails a small test, as the end of a sentence, or None. Asked once; a lack of memory is no answer."""
    case = _kernel(backend, kind)
    if case not in _verdicts:
        details = [f"head size {kind.head_dim}", f"lse {kind.return_lse}", *["gradients"] * kind.needs_grad]
        details += ["overview"] * kind.spec.overview
        try:
            with first_use(_test_words(backend), kind.device, kind.dtype, *details):
                _verdicts[case] = run_self_test(backend, kind)
        except (KernelError, torch.OutOfMemoryError) as error:
            reason = f"its kernel does not run here ({str(error).splitlines()[0]})"
            if isinstance(error, torch.OutOfMemoryError) or error.no_memory:
                # Hosts fill a card with weights; the next call may find room.
                return reason
            _verdicts[case] = reason
    return _verdicts[case]


def _test_words(backend: Backend) -> str:
    what = "Compiling and testing the attention kernel" if backend.compiled else "Testing the attention"
    return f'{what} "{backend.name}"'
