"""Triton kernels in a module that torch's compiler wrote, for other uses than running them on a card."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

_KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class EmittedKernel:
    """One kernel and how the compiler would have it compiled.

    Attributes:
        function: Triton's function of it.
        options: What the compiler notes at its head, with ``triton_meta``, ``inductor_meta``, ``num_warps`` and
            ``num_stages`` if it fixes them.
    """

    function: Any
    options: dict[str, Any]

    @property
    def signature(self) -> dict[str, str]:
        """Types by the names of the arguments."""
        return self.options["triton_meta"]["signature"]

    def compiled(self, capability: int) -> Any:
        """Triton's result for a card of a compute capability times ten, as the first call would have it made."""
        import triton
        from triton.backends.compiler import GPUTarget

        meta = self.options["triton_meta"]
        source = triton.compiler.ASTSource(self.function, self.signature, meta["constants"], meta["configs"][0])
        options = {name: self.options[name] for name in ("num_warps", "num_stages")}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def emitted_kernels(module: str, folder: Path) -> dict[str, EmittedKernel]:
    """Kernels of a module by name.

    Args:
        folder: For their source, which Triton reads again later.
    """
    found: dict[str, EmittedKernel] = {}
    for name, source in _KERNEL.findall(module):
        with _noted_options() as options:
            found[name] = EmittedKernel(getattr(module_of(source, name, folder), name), options)
    return found


def module_of(source: str, name: str, folder: Path) -> ModuleType:
    """A module from its source, which is written into the folder."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@contextmanager
def _noted_options() -> Generator[dict[str, Any]]:
    """The decorators of kernels note their options and leave the function as it is."""
    from torch._inductor.runtime import triton_helpers, triton_heuristics

    noted: dict[str, Any] = {}

    def decorator(**options: Any) -> Callable[[Any], Any]:
        noted.update(options)
        return lambda function: function

    with (
        mock.patch.object(triton_heuristics, "template", decorator),
        mock.patch.object(triton_heuristics, "pointwise", decorator),
        mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
    ):
        yield noted
