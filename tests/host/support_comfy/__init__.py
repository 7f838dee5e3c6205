"""Helpers of the host tests: a real ComfyUI in this process or beside it, tiny models, golden cases."""

import tests

# Python looks for a folder without __init__.py anew whenever sys.path changes, and booting changes it; ComfyUI and some
# libraries have a package `tests` too.
tests.__path__ = list(tests.__path__)
