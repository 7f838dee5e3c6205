"""Corrections of the denoised prediction, put on a clone of a model; no attention is touched."""
