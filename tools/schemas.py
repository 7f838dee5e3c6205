"""Reads the schemas of the nodes without ComfyUI and without torch.

The code of ``nodes/*.py`` itself runs here, so that a schema may be put together in any way. What it imports is
replaced: ``comfy_api`` by records of what it is handed, our own other modules by their literal constants, the rest by
stand-ins without a value. ``tests/host/test_help.py`` compares the outcome with /object_info of the real host.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SEED_CONTROL = "control_after_generate"


class UnreadableSchemaError(ValueError):
    """A schema needs a value that is not known without the host or torch; the message says which."""


class StandIn:
    """Whatever a module gives that was not loaded: can be called, subclassed and iterated, and has no value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        return self

    def __getitem__(self, key: Any) -> StandIn:
        return self

    def __or__(self, other: Any) -> StandIn:
        return self

    __ror__ = __or__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __str__(self) -> str:
        raise UnreadableSchemaError(
            f"a text is made with {self._name}, whose value is not known without ComfyUI and torch; "
            "use a literal constant."
        )


class SocketType:
    """``io.Model`` and its like: makes records of inputs and outputs."""

    def __init__(self, name: str) -> None:
        self.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()

    def Input(self, id: str, **options: Any) -> SimpleNamespace:  # noqa: N802  (the host's name)
        return SimpleNamespace(name=id, kind=self.kind, options=options)

    def Output(self, id: str | None = None, display_name: str | None = None, tooltip: str = "") -> SimpleNamespace:  # noqa: N802  (the host's name)
        return SimpleNamespace(name=display_name or id or self.kind, tooltip=tooltip)


class RecordingIo:
    """``comfy_api.latest.io``: schemas are kept as records, all else is a socket type or a stand-in."""

    ComfyNode = NodeOutput = Hidden = StandIn("io")

    def __init__(self) -> None:
        self.schemas: list[SimpleNamespace] = []

    def Schema(self, **stated: Any) -> SimpleNamespace:  # noqa: N802  (the host's name)
        self.schemas.append(SimpleNamespace(**stated))
        return self.schemas[-1]

    def Custom(self, kind: str) -> SocketType:  # noqa: N802  (the host's name)
        return SocketType(kind)

    def __getattr__(self, name: str) -> SocketType:
        return SocketType(name)


class Reader:
    """Runs ``nodes/*.py`` of one project, each once."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.io = RecordingIo()
        self.loaded: dict[Path, SimpleNamespace] = {}

    def load(self, file: Path) -> SimpleNamespace:
        if file not in self.loaded:
            module = self.loaded[file] = SimpleNamespace()
            space = module.__dict__
            given = {**vars(builtins), "__import__": lambda *args, **kwargs: self.find(file, *args, **kwargs)}
            # dataclasses look their module up by name, so this has to be one that exists.
            space.update(__builtins__=given, __name__=__name__, __file__=str(file))
            exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), space)  # noqa: S102  (our own nodes)
        return self.loaded[file]

    def find(
        self, importer: Path, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0
    ) -> Any:
        """Stands in for the built-in ``__import__`` in a node's module."""
        if level:
            place = importer.parents[level - 1].joinpath(*filter(None, name.split(".")))
            if place.parent == self.project / "nodes" and place.with_suffix(".py").is_file():
                return self.load(place.with_suffix(".py"))
            return constants(place)
        top = name.partition(".")[0]
        if top == "comfy_api":
            # `import comfy_api.latest` gives the package, `from comfy_api.latest import io` the module itself.
            latest = SimpleNamespace(io=self.io, ui=StandIn("ui"), ComfyExtension=StandIn("ComfyExtension"))
            return latest if wanted else SimpleNamespace(latest=latest)
        if top in sys.stdlib_module_names or top == "__future__":
            return importlib.import_module(name if wanted else top)
        return StandIn(name if wanted else top)


def constants(place: Path) -> StandIn:
    """A stand-in for one of our own modules that knows the literal constants which its source assigns."""
    module = StandIn(place.name)
    file = next((at for at in (place.with_suffix(".py"), place / "__init__.py") if at.is_file()), None)
    if file is None:
        return module
    for line in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(line, (ast.Assign, ast.AnnAssign)) and line.value:
                try:
                    setattr(module, target.id, ast.literal_eval(line.value))
                except ValueError:
                    continue  # not a literal: the stand-in answers
    return module


def read_schemas(project: Path) -> list[SimpleNamespace]:
    """The schemas of all nodes, by node id.

    Raises:
        UnreadableSchemaError: A text in a schema depends on something that is not known here.
    """
    reader = Reader(project)
    for file in sorted((project / "nodes").glob("*.py")):
        for thing in list(vars(reader.load(file)).values()):
            if isinstance(thing, type) and "define_schema" in vars(thing):
                thing.define_schema()  # type: ignore[attr-defined]
    by_id = {schema.node_id: schema for schema in reader.io.schemas}
    return [by_id[node] for node in sorted(by_id)]


def locale_of(schema: SimpleNamespace) -> dict[str, Any]:
    """What ``locales/<language>/nodeDefs.json`` says of a node, in the words of the node itself."""
    inputs: dict[str, dict[str, str]] = {}
    # The host lists what is required first.
    for one in sorted(schema.inputs, key=lambda one: one.options.get("optional", False)):
        inputs[one.name] = {"name": one.name, "tooltip": one.options.get("tooltip", "")}
        if one.options.get(SEED_CONTROL):
            inputs[SEED_CONTROL] = {"name": SEED_CONTROL.replace("_", " ")}
    outputs = {str(index): {"name": one.name, "tooltip": one.tooltip} for index, one in enumerate(schema.outputs)}
    entry = {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": outputs,
    }
    for text in texts_of(entry):
        if not isinstance(text, str):
            raise UnreadableSchemaError(f"{schema.node_id} has {text!r} where a text belongs; use a literal string.")
    return entry


def texts_of(value: Any) -> Iterator[Any]:
    """Everything inside dictionaries that is none itself."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts_of(inner)
    else:
        yield value


def widgets_of(schema: SimpleNamespace) -> list[str]:
    """Names of the inputs that are set on the node itself, in their order."""
    return [one.name for one in schema.inputs if one.kind in ("BOOLEAN", "COMBO", "FLOAT", "INT", "STRING")]
