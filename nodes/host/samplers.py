"""Names of the host's samplers and schedulers, for widgets.

Source: ``comfy.samplers.KSampler``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from comfy.samplers import KSampler


def sampler_names() -> list[str]:
    """All samplers, those of third-party packs included."""
    return KSampler.SAMPLERS


def scheduler_names() -> list[str]:
    """All schedulers, those of third-party packs included."""
    return KSampler.SCHEDULERS
