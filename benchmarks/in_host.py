"""A real ComfyUI with the pack in this process, for measurements inside the host."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The tests start a ComfyUI inside a process and make small models for it. Not by their full name: ComfyUI's environment
# has a package `tests` of its own. Imported here for all, behind the line that puts them on the path.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "host"))

from support_comfy import boot, flux, format_rows, formats, sampling
from support_comfy.live_bytes import LiveBytes

__all__ = ["LiveBytes", "flux", "format_rows", "formats", "host_with_pack", "sampling"]


@contextmanager
def host_with_pack(parser: argparse.ArgumentParser) -> Generator[tuple[Any, Any], None, None]:
    """(host, pack): the ComfyUI that COMFYUI_PATH names, in an empty folder with the pack installed and loaded.

    Raises:
        SystemExit: There is no ComfyUI, which the parser says; or it does not take the pack.
    """
    found = boot.find_comfyui()
    if not found:
        parser.error("there is no ComfyUI; name its folder in COMFYUI_PATH")
    with tempfile.TemporaryDirectory() as folder:
        host = boot.boot(found[0], boot.make_base(Path(folder)))
        loaded = host.load_pack(boot.install_pack(host.base))
        if not loaded.accepted:
            raise SystemExit(f"ComfyUI did not take the pack: {loaded.logged}")
        yield host, loaded.module
