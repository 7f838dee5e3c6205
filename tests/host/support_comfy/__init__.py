"""What the host tests stand on: a real ComfyUI in this process or beside it, tiny models, golden cases."""
