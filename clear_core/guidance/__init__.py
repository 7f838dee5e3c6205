"""Guidance by a finished picture of low resolution: corrections of a denoised prediction, free of any host.

Latents are (..., h, w): the last two axes are the picture, whatever lies before them.
"""

from .hiflow import Alignment, HiFlowState, align
from .imax import SCHEDULES, guided
from .lowpass import butterworth, coarse
from .progress import progress

__all__ = ["SCHEDULES", "Alignment", "HiFlowState", "align", "butterworth", "coarse", "guided", "progress"]
