"""What the host asks this pack for: its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import CLEARAttention
from .host.files import register_folder
from .host.routes import register_routes
from .upscale import CLEARUpscale, CLEARUpscaleStage


class ClearExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [CLEARAttention, CLEARUpscale, CLEARUpscaleStage]


async def comfy_entrypoint() -> ClearExtension:
    register_folder()  # Not in on_load: ComfyUI 0.9 does not call it.
    register_routes()
    return ClearExtension()
