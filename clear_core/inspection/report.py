"""The text of CLEARInspect: plain sentences first, then lines of the form "name: value" for bug reports."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from ..attention.backends.base import NO_TRITON
from ..effective import Effective, Inactive
from ..family import HYBRID_WORDS, TRAINING_FREE, training_free_words
from ..settings import ClearSettings
from ..spec import ClearSpec
from .facts import Inspection
from .units import memory_words, percent, significant, time_words

STEPS = 20
"""Of the example run."""

MARK = "--- for bug reports ---"
"""The line between the text for reading and the lines for quoting."""


def headline(facts: Inspection) -> str:
    """One sentence on what a part of the picture sees."""
    if not facts.effective.active:
        return "Each part of the picture looks at the whole picture"
    overview = ", and at a coarse overview of the rest" if facts.effective.spec.pools else ""
    return f"Each part of the picture looks at a circle {facts.circle_pixels} px wide{overview}"


def origin_words(facts: Inspection) -> str:
    """Which picture the report is about."""
    frame = f"{facts.size[1]} x {facts.size[0]} px"
    said = {"picture": f"Your picture at {frame}", "latent": f"A picture of {frame}, as large as the latent says"}
    start = said.get(facts.origin, f"A picture of {frame}; connect your own to see the window on it")
    return f"{start}, enlarged from {facts.stages}" if facts.stages else start


def circle_words(facts: Inspection) -> str:
    """Caption of the drawing."""
    effective = facts.effective
    side = f"{facts.token_pixels} x {facts.token_pixels} px"
    frame = f"{facts.size[1]} x {facts.size[0]} px"
    if not effective.active:
        return (
            f'At {frame} the picture has {effective.image_tokens:,} parts of {side} ("tokens"). Each of them, such '
            "as the orange square, looks at all the others and at the whole prompt."
        )
    seen = f"what lies inside the circle (true to scale: {facts.circle_pixels} px of {frame}) and at the whole prompt"
    far = ""
    if effective.spec.pools:
        cell = effective.spec.down_factor * facts.token_pixels
        far = f" Of the rest it sees one summary for each {cell} x {cell} px."
    return f'The orange square is one part of the picture, {side} (a "token"). It looks at {seen}.{far}'


def inactive_sentence(facts: Inspection) -> str:
    """Why a model with CLEAR has no windows at this size, or nothing."""
    effective, settings = facts.effective, facts.settings
    if settings is None or effective.inactive is None:
        return ""
    reasons = {
        Inactive.MIN_TOKENS: f"the picture has {effective.image_tokens:,} tokens, fewer than min_tokens, "
        f"{settings.min_tokens:,}",
        Inactive.DENSE_BLOCKS: f"dense_blocks names all {effective.shape.blocks} blocks of the model",
        Inactive.COVERED: "the circle is larger than the picture",
    }
    return f"CLEAR is connected but inactive here: {reasons[effective.inactive]}."


def step_words(facts: Inspection) -> str:
    """Work of one step at this size, and its time if it is known."""
    row, effective = facts.row(facts.size), facts.effective
    work = facts.in_use(row)
    time = time_sentence(facts, work)
    if effective.active:
        return (
            f"A step does {percent(work / row.dense)} of the work that looking at the whole picture takes (its "
            f"attention alone: {percent(effective.attention_share)}).{time}"
        )
    windowed = facts.with_windows(row)
    if effective.inactive in (Inactive.NOT_CONNECTED, Inactive.MIN_TOKENS) and windowed < row.dense:
        overview = " and an overview of the rest" if effective.spec.pools else ""
        return (
            f"Every step does the full work; with a window of {facts.circle_pixels} px{overview} it would "
            f"do {percent(windowed / row.dense)} of it.{time}"
        )
    return f"Every step does the full work.{time}"


def time_sentence(facts: Inspection, work: float) -> str:
    seconds = facts.seconds(work)
    if seconds is None:
        return ""
    return f" Here that is about {time_words(seconds)} a step, {time_words(STEPS * seconds)} for {STEPS} steps."


def advice(facts: Inspection) -> list[str]:
    """What to connect or to expect."""
    if facts.settings is None:
        return [
            "CLEAR is not connected: put the node CLEAR Attention (hi-res) between the model and this "
            "node, and the sampler after it, to get windows."
        ]
    effective = facts.effective
    if not effective.active:
        return [inactive_sentence(facts)]
    said: list[str] = []
    if effective.active_range != (0, 1):
        start, end = map(percent, effective.active_range)
        said.append(
            f"The window is active from {start} to {end} of the sampling; outside it a step looks at "
            "the whole picture and does the full work."
        )
    if facts.weights is not None and facts.weights.strength == 0:
        said.append(
            "The strength of the weights is 0, so they are not used, but their windows are: the picture will suffer. "
            "Set strength to 1 in CLEAR Attention, or weights_name to none for the training-free hybrid."
        )
    if facts.weights is None:
        said.append(without_weights(effective))
    row = facts.row(facts.size)
    if facts.in_use(row) > 0.8 * row.dense:
        said.append("At this size windows save little or nothing; they pay from 2K up.")
    if effective.spec.pools:
        less = (
            "a down_factor of 8 is cheaper"
            if effective.spec.overview
            else "weights without overview (clear_local_8, _16, _32) are cheaper"
        )
        said.append(f"The overview's cost grows with the square of the picture's area: at 8K {less}.")
    return said


def without_weights(effective: Effective) -> str:
    """What windows on the model's own weights are, and what would be better."""
    overview = effective.spec.overview
    if effective.shape.is_relative:
        return f"The {training_free_words(effective.shape.family.name, overview)}."
    kind = (
        f"these windows are {HYBRID_WORDS}, which costs some quality"
        if overview
        else f"these windows are {TRAINING_FREE}, and the picture will suffer"
    )
    return (
        f"No distilled weights are loaded: {kind}. Choose weights_name in CLEAR Attention, or press Get weights there."
    )


def memory_sentence(facts: Inspection) -> str:
    """Peak memory, the device's memory, and the tiles of CLEAR Upscale."""
    peak = memory_words(facts.row(facts.size).memory)
    device = f" The device has {memory_words(facts.device_bytes)}." if facts.device_bytes else ""
    tiles = f" CLEAR Upscale would work on {facts.tiles}." if facts.tiles else ""
    return (
        f"At its peak a step needs about {peak} of memory beside the model's "
        f"{memory_words(facts.model.weight_bytes)} of weights (calculated).{device}{tiles}"
    )


def triton_sentence(facts: Inspection) -> str:
    """On Windows, where torch brings no Triton: what installing it would give, if it is all that is missing."""
    # torch for AMD cards takes a Triton of its own.
    if platform.system() != "Windows" or torch.version.hip is not None or NO_TRITON not in facts.backend[1]:
        return ""
    return (
        "On Windows torch comes without Triton. The package triton-windows, installed into ComfyUI's Python, would "
        "give it: windows are then computed by a compiled kernel and no longer by gathered tiles, "
        f"with the same picture. Take its release for your torch ({torch.__version__}); CLEAR installs nothing itself."
    )


def used_words(facts: Inspection) -> list[str]:
    """Weights, backend and other nodes."""
    words: list[str] = []
    if facts.weights:
        words += [f"Weights: {facts.weights.name} at strength {facts.weights.strength:g}.", *facts.weights.remarks]
    if facts.effective.active:
        words.append(f'Computed by "{facts.backend[0]}". {facts.backend[1]}')
    if triton := triton_sentence(facts):
        words.append(triton)
    if facts.others:
        words.append(f"Other nodes changed this model too: {'; '.join(facts.others)}.")
    return words


def plain_words(facts: Inspection) -> list[str]:
    """Sentences for users, the most important first."""
    words = [f"{headline(facts)}.", circle_words(facts), step_words(facts)]
    if facts.pace is None:
        words.append(
            "No time is given, since nothing was timed since ComfyUI started: sample once with CLEAR "
            "Attention, then run this node again."
        )
    else:
        words.append(f"Times are calculated from the last run here: {facts.pace.what}.")
    return [*words, memory_sentence(facts), *advice(facts), *used_words(facts)]


def settings_lines(settings: ClearSettings | None, spec: ClearSpec) -> list[tuple[str, str]]:
    """CLEAR's settings as they are set, and the windows that they come to at this size."""
    if settings is None:
        return [("clear", "not connected")]
    return [
        ("clear", "connected"),
        ("radius", f"{spec.radius} (automatic)" if settings.radius_by_size else str(spec.radius)),
        ("down factor", f"{spec.down_factor} (overview)" if spec.overview else str(spec.down_factor)),
        ("start percent", f"{settings.start_percent:g}"),
        ("end percent", f"{settings.end_percent:g}"),
        ("dense blocks", settings.dense_blocks or "none"),
        ("min tokens", str(settings.min_tokens)),
        ("controlnet", settings.controlnet),
        ("backend asked for", settings.backend),
        ("ntk", settings.ntk),
    ]


def blocks_words(effective: Effective) -> str:
    """In how many blocks there are windows."""
    blocks, windowed = effective.shape.blocks, effective.windowed_blocks
    return "yes" if windowed == blocks else f"yes, in {windowed} of {blocks} blocks"


def effective_lines(facts: Inspection) -> list[tuple[str, str]]:
    """What the settings come to at this size."""
    settings, effective = facts.settings, facts.effective
    if settings is None:
        return []
    scale, weights = effective.scale, facts.weights
    return [
        ("windows at this size", f"no ({effective.inactive.value})" if effective.inactive else blocks_words(effective)),
        ("backend", f"{facts.backend[0]} ({facts.backend[1]})"),
        (
            "weights",
            f"{weights.name}, strength {weights.strength:g}, sha256 {weights.fingerprint}" if weights else "none",
        ),
        ("ntk factor", f"{effective.stretch} ({'set' if settings.ntk_factor else 'automatic'})"),
        (
            "attention scale",
            f"{scale:.6f} ({effective.query_factor_for(effective.shape.head_dim):.4f} of plain, proportional attention "
            f"{'on' if effective.proportional else 'off'}, "
            f"{'automatic' if settings.proportional_attention == 'auto' else 'set'})",
        ),
    ]


def quoted_lines(facts: Inspection) -> list[tuple[str, str]]:
    """(name, value) of every line for bug reports. Names and their order must not change."""
    model, row = facts.model, facts.row(facts.size)
    shape = model.shape
    work = facts.in_use(row)
    return [
        *facts.versions.items(),
        ("device", facts.device + (f", {memory_words(facts.device_bytes)}" if facts.device_bytes else "")),
        (
            "model",
            f"{shape.family.name}, width {shape.width}, {shape.num_double} double and {shape.num_single} "
            f"single blocks, computes in {model.dtype}, weights {memory_words(model.weight_bytes)}",
        ),
        (
            "size",
            f"{facts.size[1]} x {facts.size[0]} px, {facts.effective.image_tokens} image tokens, "
            f"{facts.text} text tokens counted with, batch {facts.batch}",
        ),
        ("size from", facts.origin),
        ("stages", facts.stages or "none"),
        ("tiles", facts.tiles or "none"),
        *settings_lines(facts.settings, facts.effective.spec),
        *effective_lines(facts),
        (
            "work of a step",
            f"{significant(work / 1000, 3)} TFLOP, {percent(work / row.dense)} of {significant(row.dense / 1000, 3)}",
        ),
        (
            "time of a step",
            f"{time_words(facts.seconds(work) or 0.0)} (from {facts.pace.what})"
            if facts.pace
            else "not known, nothing was timed",
        ),
        ("memory of a step", f"{memory_words(row.memory)} beside the weights, calculated"),
        ("other patches", "; ".join(facts.others) or "none"),
    ]


def report(facts: Inspection) -> str:
    """The whole text."""
    lines = [f"{name}: {value}" for name, value in quoted_lines(facts)]
    return "\n".join([*plain_words(facts), "", MARK, *lines])


def note(sentence: str, versions: Mapping[str, str]) -> str:
    """The text if there is only one sentence to report."""
    lines = [f"{name}: {value}" for name, value in versions.items()]
    return "\n".join([sentence, "", MARK, *lines, "model: no FLUX.1"])
