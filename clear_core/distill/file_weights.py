"""Weights of a CLEAR file into a pair's student: to judge them, or to go on from them."""

from __future__ import annotations

import torch

from ..weights import ClearFile
from ..weights.naming import spatial_name
from .pair import Pair


@torch.no_grad()
def load_weights(pair: Pair, file: ClearFile) -> None:
    """Puts a file's weights into the student of whole weights.

    Raises:
        ClearFileError: The file belongs to another model or family.
        ValueError: The file pools otherwise than the student.
    """
    shape = pair.shape
    file.fits(shape.width, shape.num_double, shape.num_single, shape.family.name)
    if (file.down_factor > 1) != pair.spec.pools:
        raise ValueError(
            f"{file.name} pools {file.down_factor} x {file.down_factor}, and the window is {pair.spec}; give the down "
            "factor of its training."
        )
    tensors, trained = file.tensors(), pair.trained()
    for name, tensor in tensors.items():
        parameter = trained[name]
        value = tensor.to(parameter)
        # What is added comes on top of the model's own weights, which a new student has.
        parameter.copy_(parameter + value if file.adds else value)
    d = file.down_factor
    for block, weight in file.spatial_weights().items():
        trained[spatial_name(*block)].copy_(weight.reshape(1, 1, 1, d, 1, d, 1))
