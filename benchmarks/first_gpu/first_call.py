"""The process whose first call is timed: ``python -m benchmarks.first_gpu.first_call JSON``, see :mod:`.first_use`.

torch is imported inside, because its import is timed too.
"""

from __future__ import annotations

import json
import sys
import time
from threading import Thread
from typing import Any


def _program(case: dict[str, Any]) -> None:
    """Prints the seconds as JSON. The calls are made in a thread of their own, as ComfyUI makes them."""
    begun = time.perf_counter()
    import torch

    from clear_core import ClearSpec, clear_attention

    from ..timing import synchronize

    seconds = {"torch": time.perf_counter() - begun}
    device = torch.device(case["device"])
    q = torch.randn(case["shape"], device=device, dtype=getattr(torch, case["dtype"]))
    synchronize(device)
    errors: list[BaseException] = []

    def calls() -> None:
        try:
            # Every thread has a number of its own.
            torch.set_num_threads(case["threads"])
            with torch.inference_mode():
                for name in ("first", "second"):
                    start = time.perf_counter()
                    clear_attention(
                        q, q, q, grid=tuple(case["grid"]), spec=ClearSpec(case["radius"]), backend=case["backend"]
                    )
                    synchronize(device)
                    seconds[name] = time.perf_counter() - start
        except Exception as error:
            errors.append(error)

    thread = Thread(target=calls)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    print(json.dumps({name: round(value, 4) for name, value in seconds.items()}))


if __name__ == "__main__":
    _program(json.loads(sys.argv[1]))
