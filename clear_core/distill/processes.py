"""Several processes that make the samples of one folder, as ``accelerate launch`` starts them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: those that look at all pictures, download a model or have more to do."""


@contextmanager
def processes() -> Generator[PartialState]:
    """The processes of this run, each with a device of its own; all of them are done when it ends without an error."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    yield state
    state.wait_for_everyone()
