"""Where a model looks: how local its attention is, and which blocks should stay dense.

The package itself needs torch alone; :mod:`.attentions` and the command import diffusers where they are used.
"""
