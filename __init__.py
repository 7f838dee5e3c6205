"""CLEAR for FLUX: the entry point for ComfyUI."""

from .nodes.host.version import host_is_recent_enough

if host_is_recent_enough():
    from .nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
else:
    NODE_CLASS_MAPPINGS = {}  # Empty, so that an old host has nothing to complain about.
    __all__ = ["NODE_CLASS_MAPPINGS"]
