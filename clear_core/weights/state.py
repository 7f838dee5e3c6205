"""The trained tensors of a training state, which may also hold a whole model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .container import open_safetensors
from .errors import ClearFileError, printable
from .header import check_complete, checked_tensors
from .naming import Stream
from .reader import TensorMap, read
from .recognise import recognise
from .trained_set import FIRST, trained_set


@dataclass(frozen=True)
class TrainedState:
    """CLEAR's part of a training state.

    Attributes:
        tensors: By canonical name, read on access.
        spatial_weights: By (stream, block index), (d, d).
        down_factor: d; 1 without spatial weights.
        others: All other keys.
    """

    tensors: Mapping[str, Tensor]
    spatial_weights: Mapping[tuple[Stream, int], Tensor]
    down_factor: int
    others: list[str]


def trained_state(path: str | os.PathLike[str], family: str = FIRST) -> TrainedState:
    """Opens a training state of a model of a family, in any of its naming schemes.

    Raises:
        ClearFileError: The file is not safetensors, trained tensors are missing, or shapes, dtypes or down factors are
            wrong.
    """
    name, handle = printable(Path(path).name), open_safetensors(path)
    names = recognise(handle.keys(), trained_set(family, name))
    if names is None:
        raise ClearFileError(
            f"{name} holds no trained tensor; expected names like transformer_blocks.0.attn.to_q.weight."
        )
    check_complete(name, names)
    _, width, d = checked_tensors(name, handle, names)
    spatial = {block: read(name, handle, key).reshape(d, d) for block, key in names.spatial.items()}
    return TrainedState(TensorMap(name, handle, names.tensors, width), spatial, d, names.unknown)
