"""Guidance by a finished picture of low resolution: corrections of a denoised prediction, free of any host.

Latents are (..., h, w): the last two axes are the picture, whatever lies before them.
"""

from .hiflow import Alignment, HiFlowState, align
from .imax import SCHEDULES, Schedule, guided
from .lowpass import butterworth, coarse
from .progress import progress
from .record import PredictionRecord, RecordedRun, brought_to_size
from .settings import MOST_LEVEL, MOST_STRENGTH, GuideSettings

__all__ = [
    "MOST_LEVEL",
    "MOST_STRENGTH",
    "SCHEDULES",
    "Alignment",
    "GuideSettings",
    "HiFlowState",
    "PredictionRecord",
    "RecordedRun",
    "Schedule",
    "align",
    "brought_to_size",
    "butterworth",
    "coarse",
    "guided",
    "progress",
]
