"""Helpers of several suites, and large ones of one suite; none of them needs a ComfyUI in its own process."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
