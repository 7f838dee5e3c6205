"""Distillation: trains windows for a model to match its own dense attention (arXiv 2412.16112, section 3.4).

``python -m clear_core.distill --help`` runs it; the rest of the core imports nothing from here.
"""
