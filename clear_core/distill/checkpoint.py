"""Checkpoints: the trained weights, the optimizer's state and the step, without pickles.

Order, noise and rate are functions of the seed and the step, so nothing else is needed to go on. A checkpoint is whole
or absent. Under DeepSpeed the library writes its own shards beside.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..wording import printable
from .config import CHECKPOINT, checkpoints, step_of
from .disk import no_half_file

KEPT = 2
"""Checkpoints that are kept besides the best one: the newest may be of a training that has gone wrong."""

BEST = "best.json"

WEIGHTS, STATE, SCALARS = "model.safetensors", "optimizer.safetensors", "optimizer.json"

PART = "checkpoint.part"

NO_STATE: dict[str, Any] = {"state": {}, "param_groups": []}
"""Of a checkpoint whose optimizer DeepSpeed stores itself."""

SEPARATOR = "/"
"""Between the steps of an entry's place in the optimizer's state."""


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all processes, on the CPU; every process calls it."""
    full: Any = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().to("cpu", copy=True).contiguous()


def weights_of(trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The trained weights by canonical name, on the CPU; every process calls it."""
    return {name: whole(parameter) for name, parameter in trained.items()}


def put_weights(trained: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Puts trained weights back.

    Raises:
        ValueError: They are of another training.
    """
    odd = sorted(trained.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"the checkpoint is of another training ({odd[0]} is in one of the two alone).")
    for name, parameter in trained.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(
                f"the checkpoint is of another training ({name} has the shape {tuple(weights[name].shape)}, expected "
                f"{tuple(parameter.shape)})."
            )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(_shared_like(parameter, weights[name]))


def _shared_like(like: Tensor, value: Tensor) -> Tensor:
    """This process's share of a whole tensor, if ``like`` is one of several processes."""
    mesh: Any = getattr(like, "device_mesh", None)
    if mesh is None or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements: Any = getattr(like, "placements", None)
    return distribute_tensor(value.to(mesh.device_type), mesh, placements)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors and as values for JSON; every process calls it."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {
        str(index): _without_tensors(entries, str(index), tensors) for index, entries in state["state"].items()
    }
    groups = [
        {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"state": values, "param_groups": groups}


def _without_tensors(entries: Mapping[str, Any], place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The entries that are no tensors; these go into ``tensors`` by their place. bitsandbytes nests its entries."""
    rest: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Tensor):
            tensors[f"{place}{SEPARATOR}{key}"] = whole(value)
        elif isinstance(value, dict):
            rest[key] = _without_tensors(value, f"{place}{SEPARATOR}{key}", tensors)
        else:
            rest[key] = value
    return rest


def put_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], tensors: Mapping[str, Tensor], values: Any
) -> None:
    """Puts an optimizer's state back; ``parameters`` are its own, in order."""
    state: dict[str, Any] = values["state"]
    for name, tensor in tensors.items():
        index, *path, key = name.split(SEPARATOR)
        entries = state[index]
        for step in path:
            entries = entries[step]
        entries[key] = _shared_like(parameters[int(index)], tensor)
    by_index = {int(index): entries for index, entries in state.items()}
    optimizer.load_state_dict({"state": by_index, "param_groups": values["param_groups"]})


def write(folder: Path, weights: dict[str, Tensor], tensors: dict[str, Tensor], values: Any) -> None:
    """Writes a checkpoint's files into a folder; one process calls it."""
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    save_file(tensors, folder / STATE, metadata={"format": "pt"})
    (folder / SCALARS).write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """The contents of a checkpoint: weights, the optimizer's tensors, its values.

    Raises:
        ValueError: It is damaged.
    """
    try:
        values = json.loads((folder / SCALARS).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not {"state", "param_groups"} <= values.keys():
            raise ValueError(f"{SCALARS} holds no state")
        return load_file(folder / WEIGHTS), load_file(folder / STATE), values
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {folder} is damaged ({printable(error, 100)}); remove it, and the training goes on from "
            "the one before, or begins anew if there is none."
        ) from None


STATES = {"adamw": 2.0, "adamw8bit": 0.6, "prodigy": 4.0}
"""What an optimizer keeps, by the bytes of the weights: two means, in 8 bits with their scales, or with Prodigy's start
and sum."""


def size_of(trained: Mapping[str, nn.Parameter], optimizer: str = "adamw") -> int:
    """Bytes of a checkpoint: weights and the optimizer's state."""
    return round(sum(4 * parameter.numel() for parameter in trained.values()) * (1 + STATES[optimizer]))


def still_to_fit(folder: Path, steps: int, save_every: int, judged: bool) -> int:
    """How many checkpoints more than now lie in the folder at once, until a training has run all of its steps.

    Args:
        steps, save_every: Of the training.
        judged: Whether the best one is known, and kept besides the last ones.
    """
    there = checkpoints(folder)
    done = step_of(there[-1]) if there else 0
    written = sum(step % save_every == 0 or step == steps for step in range(done + 1, steps + 1))
    # The next one is written before an old one is removed.
    most = KEPT + judged + 1
    return max(0, min(most, len(there) + written) - len(there))


def best_of(folder: Path) -> tuple[int, float] | None:
    """(step, held-out error) of the best checkpoint so far; None if nothing was judged.

    Raises:
        ValueError: Its record is damaged.
    """
    path = folder / BEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return int(found["step"]), float(found["error"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is damaged, so nobody knows which checkpoint is the best one; remove it, and the best one is "
            "looked for anew."
        ) from None


def keep_best(folder: Path, step: int, error: float) -> bool:
    """Remembers a checkpoint as the best one, if it is; an error that is not finite is never the best."""
    if not math.isfinite(error):
        return False
    best = best_of(folder)
    if best is not None and best[1] <= error and (folder / f"{CHECKPOINT}{best[0]:07d}").is_dir():
        return False
    with no_half_file(folder / BEST) as part:
        part.write_text(json.dumps({"step": step, "error": error}) + "\n", encoding="utf-8")
    return True


def to_remove(folder: Path) -> Iterator[Path]:
    """Older checkpoints than the last :data:`KEPT`, but for the best."""
    best = best_of(folder)
    for path in checkpoints(folder)[:-KEPT]:
        if best is None or step_of(path) != best[0]:
            yield path


def finish(folder: Path, step: int, error: float | None) -> None:
    """Gives a written checkpoint its name, and removes the ones that are no longer kept; one process calls it."""
    part, done = folder / PART, folder / f"{CHECKPOINT}{step:07d}"
    shutil.rmtree(done, ignore_errors=True)
    part.rename(done)
    if error is not None:
        keep_best(folder, step, error)
    for old in list(to_remove(folder)):
        shutil.rmtree(old)
