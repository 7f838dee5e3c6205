"""Third-party packs, loaded by the host's own loader from the host's custom_nodes, if they are there."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from .boot import Host, Recorder

_loaded: dict[str, ModuleType | str] = {}


def pack_folder(name: str) -> Path:
    """Where a pack is, or would be: in the checkout's custom_nodes, which the tests' own base folder hides."""
    return Path(sys.modules["nodes"].__file__).parent / "custom_nodes" / name


def load_pack(host: Host, name: str, missing: dict[str, Any] | None = None, absent: tuple[str, ...] = ()) -> ModuleType:
    """Loads a pack once in this process and returns its module.

    Args:
        name: The pack's folder.
        missing: "module.attribute" to value: names that this host has dropped and that the pack imports without
            using them here. They are there while it loads.
        absent: Packages that the pack imports and that no CPU test needs (kernels, face detectors); each import
            from them gives a stand-in.

    Raises:
        LookupError: It is not installed, or does not load in this host; the sentence says which and why.
    """
    if name not in _loaded:
        _loaded[name] = _load(host, name, missing or {}, absent)
    answer = _loaded[name]
    if isinstance(answer, str):
        raise LookupError(answer)
    return answer


def _load(host: Host, name: str, missing: dict[str, Any], absent: tuple[str, ...]) -> ModuleType | str:
    folder = pack_folder(name)
    if not folder.is_dir():
        return f"{name} is not in this ComfyUI's custom_nodes"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Recorder())
        stack.enter_context(_stand_ins(absent))
        for place, value in missing.items():
            module, attribute = place.rsplit(".", 1)
            stack.enter_context(mock.patch.object(importlib.import_module(module), attribute, value, create=True))
        accepted = asyncio.run(host.nodes.load_custom_node(str(folder), module_parent="custom_nodes"))
    if not accepted:
        lines = [line for message in log.messages() for line in message.strip().splitlines()]
        why = next((line for line in reversed(lines) if re.match(r"\w+(Error|Exception)\b", line)), lines[-1])
        return f"the pack does not load here, with or without CLEAR ({why.split(' (/')[0]})"
    return sys.modules[str(folder).replace(".", "_x_")]


def pack_version(name: str) -> str:
    """The version in a pack's pyproject.toml; "unknown" without one."""
    file = pack_folder(name) / "pyproject.toml"
    found = re.search(r"""^version\s*=\s*["']([^"']+)""", file.read_text(), re.MULTILINE) if file.is_file() else None
    return found.group(1) if found else "unknown"


def loaded_versions() -> dict[str, str]:
    """Version by name of every pack that was loaded."""
    return {name: pack_version(name) for name, answer in sorted(_loaded.items()) if not isinstance(answer, str)}


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = roots

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".")[0] in self.roots
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        pass


@contextlib.contextmanager
def _stand_ins(roots: tuple[str, ...]) -> Iterator[None]:
    """Lets ``import root.anything`` succeed inside."""
    finder = _StandIns(roots)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
