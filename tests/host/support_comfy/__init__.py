"""Helpers of the host tests: a real ComfyUI in this process or beside it, tiny models, golden cases."""
