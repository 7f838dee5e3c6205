"""Distilled weights on models in the formats that people load, in a real ComfyUI on the CPU: errors, not speed.

    COMFYUI_PATH=ComfyUI ComfyUI/.venv/bin/python -m benchmarks.formats --output benchmarks/records/NAME.json

with the Python that runs that ComfyUI; GGUF's rows need the pack ComfyUI-GGUF and its library there. The model is the
demo's trained FLUX. Every error is that of the model's flow relative to the same graph with the model in bf16, by the
host's own eager kernels.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from clear_core.progress import bar

from .in_host import format_rows, formats, host_with_pack
from .timing import first_line, write_record


def measure(host: Any, pack: Any) -> list[dict[str, Any]]:
    """A row for each format; a format that this ComfyUI has not got states the reason."""
    laboratory = format_rows.Laboratory(host, pack)
    rows: list[dict[str, Any]] = []
    with bar(total=len(formats.FORMATS), unit="format") as shown:
        for form in formats.FORMATS:
            lacking = formats.missing(host, form)
            found = {"format": form.name, "lacking": lacking} if lacking else format_rows.as_json(laboratory.row(form))
            rows.append(found)
            shown.update()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=first_line(__doc__))
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with host_with_pack(parser) as (host, pack), torch.inference_mode():
        rows = measure(host, pack)
    for row in rows:
        print(row)
    if options.output:
        versions = {"comfyui": host.version, "comfy-kitchen": version_of("comfy-kitchen"), "gguf": version_of("gguf")}
        write_record(options.output, torch.device("cpu"), {**versions, "threads": options.threads}, rows)


def version_of(package: str) -> str | None:
    """An installed package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
