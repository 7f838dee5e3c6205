"""Distillation: trains windows for any FLUX to match its dense attention (arXiv 2412.16112, section 3.4).

``python -m clear_core.distill --help`` runs it; the rest of the core imports nothing from here.
"""
