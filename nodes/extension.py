"""What the host asks this pack for: its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import CLEARAttention
from .guide import CLEARGuide
from .guide_align import CLEARGuideAlign
from .guide_record import CLEARGuideRecord
from .host.node_text import show_first_use
from .host.server.graph_routes import register_graph_routes
from .host.server.weight_files import register_folder
from .host.server.weights_routes import register_routes
from .inspect import CLEARInspect
from .upscale import CLEARUpscale
from .upscale_stage import CLEARUpscaleStage


class ClearExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            CLEARAttention,
            CLEARUpscale,
            CLEARUpscaleStage,
            CLEARInspect,
            CLEARGuide,
            CLEARGuideRecord,
            CLEARGuideAlign,
        ]


async def comfy_entrypoint() -> ClearExtension:
    register_folder()  # Not in on_load: ComfyUI 0.9 does not call it.
    register_routes()
    register_graph_routes()
    show_first_use()
    return ClearExtension()
