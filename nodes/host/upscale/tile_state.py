"""What other nodes keep between the calls of a model, once for each tile.

A cache compares a call with the one before, and one step in tiles makes a call for every tile. Therefore each tile has
its own copy of what a node may write to: attributes of the model (TeaCache), of objects in the model's options (the
host's EasyCache), and of objects that are called in a step (the host's FluxKVCache).

Source: ``transformer_options`` and ``model_function_wrapper`` in ``model_options``; ``BaseModel.diffusion_model``;
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from ....clear_core.sdedit import Tile
from ..crop.foreign_objects import called_in, is_foreign, is_shared, owner_of
from ..model.notices import Notices

CONTAINERS = (dict, list, set, deque, OrderedDict, defaultdict)

OF_A_MODULE = frozenset(vars(nn.Module()))

Attributes = dict[str, Any]


@dataclass
class Keeper:
    """One object, and what it holds for each tile.

    Attributes:
        holder: The model, or an object of another node.
        found: Its attributes before the first tile.
        of_tile: Its attributes after each tile that is not the running one.
    """

    holder: Any
    found: Attributes
    of_tile: dict[Tile, Attributes] = field(default_factory=dict)


@dataclass
class TileState:
    """The state of one sampling run. Outside of a step, every object holds what belongs to the first tile.

    Attributes:
        notices: For what cannot be kept apart.
        keepers: By the id of their object.
        functions: Of other nodes, called in this step; what surrounds them cannot be kept apart.
        running: The tile whose state the objects hold.
    """

    notices: Notices = field(default_factory=Notices)
    keepers: dict[int, Keeper] = field(default_factory=dict)
    functions: list[FunctionType] = field(default_factory=list)
    running: Tile | None = None

    def begin_step(self, first: Tile, model: Any, model_options: dict[str, Any]) -> None:
        """Look up what can hold state in this step.

        Args:
            first: The frame's first tile.
            model: The ``comfy.model_base.BaseModel`` that samples.
            model_options: Of the step.
        """
        called = list(called_in(model_options))
        options = model_options.get("transformer_options", {}).values()
        holders = [unwrapped(model.diffusion_model), *filter(is_foreign, options)]
        holders += [owner for owner in map(owner_of, called) if is_foreign(owner)]
        self.keepers = {
            id(holder): self.keepers.get(id(holder)) or Keeper(holder, copied(state_of(holder))) for holder in holders
        }
        self.functions = [each for each in called if isinstance(each, FunctionType) and not is_shared(each)]
        self.running = first

    @contextmanager
    def of(self, tile: Tile) -> Generator[None]:
        """Inside, every object holds what it held after the last call of ``tile``."""
        self.switch(tile)
        before = [(function, closure_tensors(function)) for function in self.functions]
        yield
        for function, tensors in before:
            changed = [name for name, value in closure_tensors(function).items() if value is not tensors.get(name)]
            if changed:
                self.say_shared(function, changed)

    def switch(self, tile: Tile) -> None:
        """Put away the state of the running tile and take out that of another one."""
        if tile == self.running or self.running is None:
            return
        for keeper in self.keepers.values():
            keeper.of_tile[self.running] = state_of(keeper.holder)
            wanted = keeper.of_tile.pop(tile, None)
            replace(keeper.holder, copied(keeper.found) if wanted is None else wanted)
        self.running = tile

    def say_shared(self, function: FunctionType, names: Iterable[str]) -> None:
        """Name a function whose variables cannot be kept for each tile."""
        self.notices.log_once(
            f"closure {function.__module__}.{function.__qualname__}",
            f"{function.__qualname__} of {function.__module__} keeps {', '.join(sorted(names))} from one call to the "
            "next in a place of its own, so one tile's reaches the next tile; sample without tiles or without that "
            "node.",
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what torch.compile made of it."""
    return getattr(model, "_orig_mod", model)


def state_of(holder: Any) -> Attributes:
    """Attributes that a call may replace; weights, functions and a module's own registers are none."""
    return {
        name: value
        for name, value in vars(holder).items()
        if name not in OF_A_MODULE and not isinstance(value, nn.Module) and not callable(value)
    }


def replace(holder: Any, state: Attributes) -> None:
    """Make ``state`` the attributes of an object."""
    attributes = vars(holder)
    for name in state_of(holder).keys() - state.keys():
        del attributes[name]
    attributes.update(state)


def copied(value: Any) -> Any:
    """Containers copied at every depth; what they hold is shared."""
    if type(value) not in CONTAINERS:
        return value
    made = copy.copy(value)
    if isinstance(made, dict):
        made.update({key: copied(item) for key, item in made.items()})
    elif isinstance(made, list):
        made[:] = map(copied, made)
    return made


def closure_tensors(function: FunctionType) -> dict[str, Tensor]:
    """Variables around a function that hold a tensor, by name."""
    found: dict[str, Tensor] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # An empty cell, whose variable has no value yet.
            if isinstance(cell.cell_contents, Tensor):
                found[name] = cell.cell_contents
    return found
