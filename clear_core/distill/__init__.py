"""Distillation: windows for any FLUX, trained to do what its full attention does (arXiv 2412.16112, section 3.4).

``python -m clear_core.distill --help`` runs it; nothing here is imported by the rest of the core.
"""
