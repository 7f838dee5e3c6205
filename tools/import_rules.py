"""What may import what. One table; ``dev.py check`` and ``tests/core/test_import_rules.py`` go by it.

Modules are named by their place: ``clear_core.attention.choose`` is ``clear_core/attention/choose.py``. An import
counts wherever it stands, also in a function or for types only. The standard library alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

WINGS = ("clear_core", "nodes", "demo", "benchmarks", "tools", "tests")
WORKSHOP = ("demo", "benchmarks", "tools", "tests")

# Modules of ComfyUI; `comfyui.nodes` is what this file calls its own `nodes`, which ours hides.
COMFY = ("comfy", "comfy_execution", "comfy_extras", "comfy_config", "comfyui_version", "folder_paths", "node_helpers")
HOST = (*COMFY, "comfy_api", "server", "execution", "latent_preview", "app", "utils", "comfyui")

# What server may ask of nodes/host/model: modules that read and patch nothing.
READS = ("read", "family", "throughput")


@dataclass(frozen=True)
class Rule:
    """Modules that may not import others.

    Attributes:
        name: The rule, as an offence is told of it.
        reason: Why.
        inside: The importing modules: these and all below them.
        never: What they may not import: these and all below them.
        but: Exceptions among the imported ones.
        not_in: Exceptions among the importing ones.
    """

    name: str
    reason: str
    inside: tuple[str, ...]
    never: tuple[str, ...]
    but: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()


RULES = (
    Rule(
        "clear_core imports no host and nothing above it",
        "it is plain torch: it runs in scripts, in diffusers, and in tests without ComfyUI",
        inside=("clear_core",),
        never=("nodes", *WORKSHOP, *HOST),
    ),
    Rule(
        "the method does not import the report about it",
        "what computes stands below what explains",
        inside=("clear_core",),
        never=("clear_core.inspection",),
        not_in=("clear_core.inspection",),
    ),
    Rule(
        "clear_core/progress alone draws bars",
        "in a log file, too, a command then ends its bar on one line",
        inside=("clear_core", "nodes", "demo", "benchmarks", "tools"),
        never=("tqdm",),
        not_in=("clear_core.progress",),
    ),
    Rule(
        "only nodes/host touches the host; a node's own file knows comfy_api alone",
        "a new version of the host then changes one folder",
        inside=("nodes",),
        never=tuple(name for name in HOST if name != "comfy_api"),
        not_in=("nodes.host",),
    ),
    Rule(
        "nodes/host does not import the nodes",
        "the nodes call it; data flows one way",
        inside=("nodes.host",),
        never=("nodes",),
        but=("nodes.host",),
    ),
    Rule(
        "what ships does not import the workshop",
        "demo, benchmarks, tools and tests are not in what the registry serves",
        inside=("nodes",),
        never=WORKSHOP,
    ),
    Rule(
        "nodes/host/model imports no sibling",
        "what CLEAR puts on a model serves all the others",
        inside=("nodes.host.model",),
        never=tuple(f"nodes.host.{name}" for name in ("crop", "guidance", "parallel", "upscale", "inspect", "server")),
    ),
    Rule(
        "nodes/host/crop imports model alone",
        "tiles and strips are cut by the same rules",
        inside=("nodes.host.crop",),
        never=tuple(f"nodes.host.{name}" for name in ("guidance", "parallel", "upscale", "inspect", "server")),
    ),
    Rule(
        "nodes/host/parallel imports model and crop alone",
        "several devices serve every node that samples",
        inside=("nodes.host.parallel",),
        never=tuple(f"nodes.host.{name}" for name in ("guidance", "upscale", "inspect", "server")),
    ),
    Rule(
        "nodes/host/guidance imports model alone",
        "corrections of a prediction serve every node that samples",
        inside=("nodes.host.guidance",),
        never=tuple(f"nodes.host.{name}" for name in ("crop", "parallel", "upscale", "inspect", "server")),
    ),
    Rule(
        "nodes/host/upscale imports neither inspect nor server",
        "two nodes share what is below both",
        inside=("nodes.host.upscale",),
        never=("nodes.host.inspect", "nodes.host.server"),
    ),
    Rule(
        "nodes/host/inspect imports neither upscale nor server",
        "two nodes share what is below both",
        inside=("nodes.host.inspect",),
        never=("nodes.host.upscale", "nodes.host.server"),
    ),
    Rule(
        "nodes/host/server touches no model",
        "a request may come at any time, also while a model runs",
        inside=("nodes.host.server",),
        never=("nodes.host.model", "nodes.host.guidance", "nodes.host.upscale", "nodes.host.inspect"),
        but=tuple(f"nodes.host.model.{name}" for name in READS),
    ),
)

BACKENDS = "clear_core.attention.backends"
REFERENCE = "dense"
SHARED_BY_BACKENDS = ("__init__", "base")


@dataclass(frozen=True)
class Import:
    """One import: by which module, of which, in which file and line. ``own`` if it is of this project."""

    importer: str
    imported: str
    file: str
    line: int
    own: bool


def is_in(module: str, places: Iterable[str]) -> bool:
    """Whether a module is one of these or below one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


class Project:
    """The modules of a checkout and what they import."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = [file for wing in WINGS for file in sorted((root / wing).rglob("*.py"))]
        files += [file for file in (root / "dev.py",) if file.is_file()]
        self.modules = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}

    def module_of(self, name: str) -> str | None:
        """The file's module behind a dotted name: the module itself or the package's ``__init__``."""
        return next((found for found in (name, f"{name}.__init__") if found in self.modules), None)

    @cached_property
    def imports(self) -> list[Import]:
        return [one for module in self.modules for one in self.imports_of(module)]

    def imports_of(self, importer: str) -> Iterator[Import]:
        file = self.modules[importer]
        place = file.relative_to(self.root).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield self.one(importer, alias.name, place, node.lineno, False)
            elif isinstance(node, ast.ImportFrom):
                base, own = node.module or "", bool(node.level)
                if own:
                    base = ".".join([*importer.split(".")[: -node.level], *filter(None, [base])])
                for alias in node.names:
                    # `from package import name`: a module of the package, or a name in its __init__.
                    whole = f"{base}.{alias.name}"
                    yield self.one(importer, whole if self.module_of(whole) else base, place, node.lineno, own)

    def one(self, importer: str, name: str, place: str, line: int, relative: bool) -> Import:
        own = relative or name.partition(".")[0] in WINGS
        if not relative and importer.startswith("nodes.") and is_in(name, ("nodes",)):
            own, name = False, f"comfyui.{name}"
        return Import(importer, (self.module_of(name) or name) if own else name, place, line, own)

    def offences(self) -> list[str]:
        """One line for every import that breaks a rule, leads nowhere or closes a circle."""
        return [*self.broken_rules(), *self.between_backends(), *self.lost(), *self.circles(), *self.dev_needs()]

    def broken_rules(self) -> Iterator[str]:
        for rule in RULES:
            for one in self.imports:
                concerned = is_in(one.importer, rule.inside) and not is_in(one.importer, rule.not_in)
                if concerned and is_in(one.imported, rule.never) and not is_in(one.imported, rule.but):
                    yield said(one, rule.name, rule.reason)

    def between_backends(self) -> Iterator[str]:
        """No backend reaches another, directly or through what it imports: each can be taken out, and the reference
        proves something only if nothing that it checks is built on it."""
        next_of: dict[str, list[Import]] = {}
        for one in self.imports:
            if one.own and is_in(one.importer, ("clear_core",)):
                next_of.setdefault(one.importer, []).append(one)
        for backend in sorted({found for module in self.modules if (found := backend_of(module))}):
            waiting = [module for module in self.modules if backend_of(module) == backend]
            seen = set(waiting)
            while waiting:
                for one in next_of.get(waiting.pop(), []):
                    other = backend_of(one.imported)
                    if other not in (None, backend):
                        what = "the reference" if other == REFERENCE else f"the backend {other}"
                        yield said(one, f"the backend {backend} reaches {what} by it", "each stands alone")
                    elif one.imported not in seen:
                        seen.add(one.imported)
                        waiting.append(one.imported)

    def lost(self) -> Iterator[str]:
        for one in self.imports:
            if one.own and one.imported not in self.modules and not self.is_root(one):
                yield said(one, "an import of our own leads to a file", "there is none of this name")

    def is_root(self, one: Import) -> bool:
        """Whether it is the pack itself, or a folder without code of its own (`tests` and what is in it)."""
        return one.imported == "" or (self.root.joinpath(*one.imported.split(".")).is_dir())

    def circles(self) -> Iterator[str]:
        """Every circle once, at the import that closes it."""
        next_of: dict[str, list[Import]] = {}
        for one in self.imports:
            if one.own and one.imported != one.importer:
                next_of.setdefault(one.importer, []).append(one)
        done: set[str] = set()
        for start in self.modules:
            path: list[str] = []
            yield from visit(start, path, done, next_of)

    def dev_needs(self) -> Iterator[str]:
        """dev.py and the modules that it imports run before anything is installed."""
        waiting, seen = ["dev"], {"dev"}
        while waiting:
            current = waiting.pop()
            for one in self.imports_of(current) if current in self.modules else ():
                if one.own and one.imported not in seen:
                    seen.add(one.imported)
                    waiting.append(one.imported)
                elif not one.own and one.imported.partition(".")[0] not in {*sys.stdlib_module_names, "__future__"}:
                    yield said(one, "dev.py needs the standard library alone", "it runs before anything is installed")


def backend_of(module: str) -> str | None:
    """The backend that a module belongs to, or None."""
    if not is_in(module, (BACKENDS,)) or module == BACKENDS:
        return None
    part = module.removeprefix(f"{BACKENDS}.").split(".")[0]
    return None if part in SHARED_BY_BACKENDS else part


def visit(module: str, path: list[str], done: set[str], next_of: dict[str, list[Import]]) -> Iterator[str]:
    """Walks on from one module, depth first."""
    if module in done:
        return
    path.append(module)
    for one in next_of.get(module, []):
        if one.imported in path:
            circle = [*path[path.index(one.imported) :], one.imported]
            yield said(one, "imports form no circle", " > ".join(circle))
        else:
            yield from visit(one.imported, path, done, next_of)
    path.pop()
    done.add(module)


def said(one: Import, rule: str, reason: str) -> str:
    return f"{one.file}:{one.line}: imports {one.imported}: {rule} ({reason})"
