"""``images`` and ``generate``: samples from pictures, or from the model itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...progress import bar
from ..sample_files import sample_path
from .load import load_pipeline, teaching_for_samples

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..folder_record import Value


def run_images(options: argparse.Namespace) -> None:
    from ..folder_record import read_record
    from ..inputs import checked_pictures, folders_inside, items_of, pictures_of, sources_of
    from ..prepare import Share, check_pixels, samples_from_pictures
    from ..processes import processes

    check_pixels(options.pixels)
    with processes() as state:
        pipeline = None
        if state.is_main_process:
            begun = read_record(options.out)
            pictures, remarks = checked_pictures(
                sources_of(options.folder),
                skip_damaged=options.skip_damaged,
                known=begun.digests if begun else (),
                progress=lambda sources: bar(sources, unit="picture", desc="looking"),
            )
            for remark in [*remarks, *folders_inside(options.folder)]:
                print(remark, file=sys.stderr)
            pipeline = begin(options, {"pixels": options.pixels}, items_of(pictures))
        state.wait_for_everyone()
        record = read_record(options.out)
        assert record is not None  # The main process has written it.
        pictures = pictures_of(sources_of(options.folder), record.items)
        if not is_complete(options.out, len(pictures)):
            pipeline = pipeline or load_pipeline(options)
            share = Share(state.process_index, state.num_processes)
            show(samples_from_pictures(pipeline, pictures, options.out, options.pixels, share), len(pictures), state)


def run_generate(options: argparse.Namespace) -> None:
    from ..captions import lines_of
    from ..inputs import digest_of
    from ..prepare import Drawing, Share, samples_from_teacher
    from ..processes import processes

    guidance = teaching_for_samples(options).scale(options.guidance)
    drawing = Drawing(tuple(options.size), options.steps, guidance, options.seed)
    with processes() as state:
        captions = lines_of(options.captions)
        pipeline = None
        if state.is_main_process:
            (height, width), given = drawing.size, ("steps", "guidance", "seed")
            values = {"height": height, "width": width} | {name: getattr(drawing, name) for name in given}
            items = {
                f"caption {number}": {"caption": digest_of(caption.encode())}
                for number, caption in enumerate(captions, 1)
            }
            pipeline = begin(options, values, items)
        state.wait_for_everyone()
        if not is_complete(options.out, len(captions)):
            pipeline = pipeline or load_pipeline(options)
            share = Share(state.process_index, state.num_processes)
            show(samples_from_teacher(pipeline, captions, options.out, drawing, share), len(captions), state)


def begin(options: argparse.Namespace, values: dict[str, Value], items: dict[str, dict[str, str]]) -> Any:
    """Compares what is asked for with what the folder was begun with, or writes it into a new folder.

    Returns:
        The pipeline, if it had to be loaded for that: a model that may have to be downloaded first. Else None.
    """
    from .. import folder_record
    from ..model_content import local_folder, model_content

    pipeline = None
    folder = local_folder(options.model)
    # Of a model that may be downloaded, a part may be here already.
    if folder is None or (options.download and not Path(options.model).is_dir()):
        pipeline = load_pipeline(options)
        folder = local_folder(options.model)
    all_values: dict[str, Value] = {
        "command": options.run.__name__.removeprefix("run_"),
        "model": None if folder is None else model_content(folder),
        "dtype": options.dtype,
        **values,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    folder_record.begin(options.out, folder_record.Record(all_values, items, {"model": options.model}))
    return pipeline


def is_complete(out: Path, total: int) -> bool:
    """Whether all samples are there, so that no model is needed."""
    return all(sample_path(out, index).exists() for index in range(total))


def show(made: Iterator[Path], total: int, state: PartialState) -> None:
    """Runs through the samples with a bar of the main process, which counts its own."""
    mine = len(range(state.process_index, total, state.num_processes))
    many = f"1 of {state.num_processes} processes" if state.num_processes > 1 else ""
    for _ in bar(made, total=mine, unit="sample", desc=many, shown=state.is_main_process):
        pass
