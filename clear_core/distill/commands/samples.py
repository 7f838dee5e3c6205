"""``images`` and ``generate``: samples from pictures, or from the model itself."""

from __future__ import annotations

import argparse

from .load import load_pipeline


def run_images(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..prepare import captioned_pictures, samples_from_pictures

    total = len(captioned_pictures(options.folder))
    options.out.mkdir(parents=True, exist_ok=True)
    for _ in tqdm(
        samples_from_pictures(load_pipeline(options), options.folder, options.out, options.pixels),
        total=total,
        unit="picture",
    ):
        pass


def run_generate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..prepare import samples_from_teacher

    captions = [line.strip() for line in options.captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    options.out.mkdir(parents=True, exist_ok=True)
    for _ in tqdm(
        samples_from_teacher(
            load_pipeline(options),
            captions,
            options.out,
            size=tuple(options.size),
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
        ),
        total=len(captions),
        unit="picture",
    ):
        pass
