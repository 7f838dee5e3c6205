"""What CLEARInspect says: plain words first, then lines of the form "name: value" for bug reports."""

from __future__ import annotations

from collections.abc import Mapping

from ..cost import clear_pairs, dense_pairs
from ..layout import TOKEN_PIXELS
from ..settings import ClearSettings
from .facts import Inspection
from .units import memory_words, percent, significant, time_words

STEPS = 20
"""Of the example run."""

MARK = "--- for bug reports ---"
"""The line between what is for reading and what is for quoting."""


def headline(facts: Inspection) -> str:
    """One sentence on what a part of the picture sees."""
    if facts.is_windowed and not facts.spec.covers(facts.grid):
        width = f"{2 * facts.spec.radius * TOKEN_PIXELS} px"
        overview = ", and at a coarse overview of the rest" if facts.spec.pools else ""
        return f"Each part of the picture looks at a circle {width} wide{overview}"
    return "Each part of the picture looks at the whole picture"


def origin_words(facts: Inspection) -> str:
    """Which picture it is about."""
    frame = f"{facts.size[1]} x {facts.size[0]} px"
    said = {"picture": f"Your picture at {frame}", "latent": f"A picture of {frame}, as large as the latent says"}
    start = said.get(facts.origin, f"A picture of {frame}; connect your own to see the window on it")
    return f"{start}, enlarged from {facts.stages}" if facts.stages else start


def circle_words(facts: Inspection) -> str:
    """What the drawing shows."""
    side = f"{TOKEN_PIXELS} x {TOKEN_PIXELS} px"
    frame = f"{facts.size[1]} x {facts.size[0]} px"
    if not facts.is_windowed or facts.spec.covers(facts.grid):
        return (
            f'At {frame} the picture has {facts.layout.image:,} parts of {side} ("tokens"). Each of them, such '
            "as the orange square, looks at all the others and at the whole prompt."
        )
    seen = (
        f"what lies inside the circle (true to scale: {2 * facts.spec.radius * TOKEN_PIXELS} px of {frame}) and at "
        "the whole prompt"
    )
    far = ""
    if facts.spec.pools:
        cell = facts.spec.down_factor * TOKEN_PIXELS
        far = f" Of the rest it sees one summary for each {cell} x {cell} px."
    return f'The orange square is one part of the picture, {side} (a "token"). It looks at {seen}.{far}'


def reduced_to_dense(facts: Inspection) -> str:
    """Why a model with CLEAR has no windows at this size, or nothing."""
    settings = facts.settings
    if settings is None or facts.is_windowed:
        return ""
    if facts.is_all_dense:
        return f"CLEAR is connected but rests: dense_blocks names all {facts.model.blocks} blocks of the model."
    return (
        f"CLEAR is connected but rests here: the picture has {facts.layout.image:,} tokens, fewer than min_tokens, "
        f"{settings.min_tokens:,}."
    )


def step_words(facts: Inspection) -> str:
    """Work, and time where it is known, of one step at this size."""
    row = facts.row(facts.size)
    work = facts.in_use(row)
    if facts.is_all_dense:
        return f"Every step does the full work.{time_sentence(facts, work)}"
    if not facts.is_windowed:
        return (
            f"Every step does the full work; with a window of {2 * facts.spec.radius * TOKEN_PIXELS} px it would "
            f"do {percent(row.window / row.dense)} of it.{time_sentence(facts, work)}"
        )
    attention = percent(clear_pairs(facts.layout, facts.spec) / dense_pairs(facts.layout))
    return (
        f"A step does {percent(work / row.dense)} of the work that looking at the whole picture takes (its "
        f"attention alone: {attention}).{time_sentence(facts, work)}"
    )


def time_sentence(facts: Inspection, work: float) -> str:
    seconds = facts.seconds(work)
    if seconds is None:
        return ""
    return f" Here that is about {time_words(seconds)} a step, {time_words(STEPS * seconds)} for {STEPS} steps."


def advice(facts: Inspection) -> list[str]:
    """What to connect or to expect, where there is something to say."""
    said = []
    if facts.settings is None:
        said.append(
            "CLEAR is not connected: put the node CLEAR Attention (FLUX hi-res) between the model and this "
            "node, and the sampler after it, to get windows."
        )
        return said
    if reduced_to_dense(facts):
        return [reduced_to_dense(facts)]
    if (facts.settings.start_percent, facts.settings.end_percent) != (0, 1):
        start, end = percent(facts.settings.start_percent), percent(facts.settings.end_percent)
        said.append(
            f"The window acts from {start} to {end} of the sampling; outside it a step looks at "
            "the whole picture and does the full work."
        )
    if facts.weights is not None and facts.weights.strength == 0:
        said.append(
            "The strength of the weights is 0, so they are not used: the picture will suffer as it does without "
            "any. Set strength to 1 in CLEAR Attention."
        )
    if facts.weights is None:
        said.append(
            "No distilled weights are loaded: the model was not trained for windows, and the picture will "
            "suffer. Choose weights_name in CLEAR Attention, or press Get weights there."
        )
    if facts.spec.covers(facts.grid):
        said.append("The circle is larger than the picture, so attention is ordinary here.")
    row = facts.row(facts.size)
    if facts.in_use(row) > 0.8 * row.dense:
        said.append("At this size windows save little or nothing; they pay from 2K up.")
    if facts.spec.pools:
        said.append(
            "The overview's cost grows with the square of the picture's area: at 8K weights without overview "
            "(clear_local_8, _16, _32) are cheaper."
        )
    return said


def memory_sentence(facts: Inspection) -> str:
    """Peak memory, the device's, and how CLEAR Upscale would divide the picture."""
    peak = memory_words(facts.row(facts.size).memory)
    device = f" The device has {memory_words(facts.device_bytes)}." if facts.device_bytes else ""
    tiles = f" CLEAR Upscale would work on {facts.tiles}." if facts.tiles else ""
    return (
        f"At its peak a step needs about {peak} of memory beside the model's "
        f"{memory_words(facts.model.weight_bytes)} of weights (calculated).{device}{tiles}"
    )


def used_words(facts: Inspection) -> list[str]:
    """What takes part in a step besides the model."""
    words = []
    if facts.weights:
        words.append(f"Weights: {facts.weights.name} at strength {facts.weights.strength:g}.")
    if facts.is_windowed:
        words.append(f'Computed by "{facts.backend[0]}". {facts.backend[1]}')
    if facts.others:
        words.append(f"Other nodes changed this model too: {'; '.join(facts.others)}.")
    return words


def plain_words(facts: Inspection) -> list[str]:
    """Sentences for people, most important first."""
    words = [f"{headline(facts)}.", circle_words(facts), step_words(facts)]
    if facts.pace is None:
        words.append(
            "No time is given, since nothing was timed since ComfyUI started: sample once with CLEAR "
            "Attention, then run this node again."
        )
    else:
        words.append(f"Times are calculated from the last run here: {facts.pace.what}.")
    return [*words, memory_sentence(facts), *advice(facts), *used_words(facts)]


def settings_lines(settings: ClearSettings | None) -> list[tuple[str, str]]:
    """CLEAR's settings as they are set."""
    if settings is None:
        return [("clear", "not connected")]
    return [
        ("clear", "connected"),
        ("radius", str(settings.spec.radius)),
        ("down factor", str(settings.spec.down_factor)),
        ("start percent", f"{settings.start_percent:g}"),
        ("end percent", f"{settings.end_percent:g}"),
        ("dense blocks", settings.dense_blocks or "none"),
        ("min tokens", str(settings.min_tokens)),
        ("controlnet", settings.controlnet),
        ("backend asked for", settings.backend),
    ]


def effective_lines(facts: Inspection) -> list[tuple[str, str]]:
    """What the settings come to at this size."""
    settings = facts.settings
    if settings is None:
        return []
    head_dim, tokens = facts.model.head_dim, facts.layout.image
    scale = settings.scale(head_dim, facts.layout)
    weights = facts.weights
    return [
        ("windows at this size", "yes" if facts.is_windowed else "no"),
        ("backend", f"{facts.backend[0]} ({facts.backend[1]})"),
        (
            "weights",
            f"{weights.name}, strength {weights.strength:g}, sha256 {weights.fingerprint}" if weights else "none",
        ),
        ("ntk factor", f"{settings.ntk(tokens):g} ({'set' if settings.ntk_factor else 'automatic'})"),
        (
            "attention scale",
            f"{scale:.6f} ({scale * head_dim**0.5:.4f} of plain, proportional attention "
            f"{'on' if settings.is_proportional(tokens) else 'off'}, "
            f"{'automatic' if settings.proportional_attention == 'auto' else 'set'})",
        ),
    ]


def quoted_lines(facts: Inspection) -> list[tuple[str, str]]:
    """(name, value) of every line for bug reports; names and their order stay as they are."""
    model, row = facts.model, facts.row(facts.size)
    work = facts.in_use(row)
    seconds = facts.seconds(work)
    return [
        *facts.versions.items(),
        ("device", facts.device + (f", {memory_words(facts.device_bytes)}" if facts.device_bytes else "")),
        (
            "model",
            f"{model.name}, width {model.activations.width}, {model.num_double} double and {model.num_single} "
            f"single blocks, computes in {model.dtype}, weights {memory_words(model.weight_bytes)}",
        ),
        (
            "size",
            f"{facts.size[1]} x {facts.size[0]} px, {facts.layout.image} image tokens, {facts.text} text tokens "
            f"counted with, batch {facts.batch}",
        ),
        ("size from", facts.origin),
        ("stages", facts.stages or "none"),
        ("tiles", facts.tiles or "none"),
        *settings_lines(facts.settings),
        *effective_lines(facts),
        (
            "work of a step",
            f"{significant(work / 1000, 3)} TFLOP, {percent(work / row.dense)} of {significant(row.dense / 1000, 3)}",
        ),
        (
            "time of a step",
            f"{time_words(seconds)} (from {facts.pace.what})"
            if seconds is not None
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
    """The text where there is nothing to report but one sentence."""
    lines = [f"{name}: {value}" for name, value in versions.items()]
    return "\n".join([sentence, "", MARK, *lines, "model: no FLUX.1"])
