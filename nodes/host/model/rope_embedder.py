"""The model's position embedder, with the stretched base, exact position ids and tile position of each call.

Source: ``comfy.ldm.flux.layers.EmbedND`` and ``comfy.ldm.hidream.model.EmbedND``, exchanged by
``ModelPatcher.add_object_patch``, which follows clones and is undone by the host;
``comfy.patcher_extension.WrappersMP.APPLY_MODEL``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.hidream.model import EmbedND as HiDreamEmbedder
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ....clear_core.layout import SequenceLayout, token_grid
from ....clear_core.rope import NOT_STRETCHED, RopeStretch, ntk_theta, rotations
from .family import host_family, row_of
from .family_table import FLUX_EMBEDDER, FLUX_ROW, EmbedderForm, HostFamily
from .image_positions import place_image
from .notices import Notices
from .sequence import is_image
from .tile_frame import KEY as FRAME_PART
from .tile_frame import FramePart

WRAPPER_KEY = "clear_flux_positions"


@dataclass(frozen=True)
class CallPositions:
    """The running call of a model, as its position embedder has to know it.

    Attributes:
        stretch: What is done to the rotary base.
        sigma: Noise level of the call, 0 to 1; read only if ``stretch`` fades.
        layout: Text, image and reference tokens of the call's inputs; None keeps all ids as they are.
        part: The tile that the call computes, or None for the whole frame.
        rope_options: The call's ``transformer_options["rope_options"]``.
        references_follow: Whether reference tokens lie past the image's last row and column (the host's "uxo").
        form: How the model asks its embedder.
        made_in: The dtype that the host counts positions in; None is that of the ids.
        steps: Between positions of rows and columns, as the model may take them.
    """

    stretch: RopeStretch = NOT_STRETCHED
    sigma: float = 1.0
    layout: SequenceLayout | None = None
    part: FramePart | None = None
    rope_options: Mapping[str, float] | None = None
    references_follow: bool = False
    form: EmbedderForm = FLUX_EMBEDDER
    made_in: torch.dtype | None = None
    steps: tuple[tuple[float, float], ...] = ((1.0, 1.0),)


# The embedder's forward gets token ids alone, and one module serves frames of every size, in several threads.
_running: ContextVar[CallPositions] = ContextVar("clear_positions", default=CallPositions())  # noqa: B039 - frozen


@contextmanager
def positions(**changes: Any) -> Generator[None]:
    """Set fields of :class:`CallPositions` for the embedder inside; the other fields stay as outside."""
    token = _running.set(replace(_running.get(), **changes))
    try:
        yield
    finally:
        _running.reset(token)


def stretched(stretch: RopeStretch, sigmas: Tensor | None) -> Any:
    """A context in which :class:`PositionEmbedder` stretches its base.

    Args:
        stretch: What is done to it.
        sigmas: (B,) noise levels of the call, all the same; None counts as pure noise.
    """
    # Reading a number waits for the device, so only where it is needed.
    return positions(stretch=stretch, sigma=float(sigmas[0]) if stretch.fades and sigmas is not None else 1.0)


class PositionEmbedder(torch.nn.Module):
    """Embeds positions as ``base`` does, with the stretched base, the exact ids and the tile of the running call.

    An embedder of another node gets the ids of the tile; its base is not stretched.
    """

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base
        self.notices = Notices()
        # For nodes that read them off a model in memory to make an embedder of their own (DyPE).
        for name in ("dim", "theta", "axes_dim"):
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    # Compiled models keep the first value they see of anything that is not a tensor.
    @torch.compiler.disable
    def forward(self, ids: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - torch's disable
        """(B, tokens, axes) ids to (B, 1, tokens, D / 2, 2, 2) rotations."""
        call = _running.get()
        if call.part is not None:
            call.part.run.asked = True
        if call.layout is not None:
            placed = place_image(
                ids,
                call.layout,
                call.part,
                call.rope_options,
                call.references_follow,
                call.form,
                call.made_in,
                call.steps,
            )
            if placed is None:
                self.notices.log_once(
                    "sequence",
                    f"a tile's sequence has {ids.shape[1]} positions, but {call.layout.text} text, "
                    f"{call.layout.image} image and {call.layout.reference} reference tokens were expected (another "
                    "node changed them); its positions are not moved to its place in the frame.",
                )
            else:
                ids = placed
        base, factor = self.base, call.stretch.base_factor
        if factor == 1.0 or not is_plain(base):
            return base(ids)
        if factor is None:
            # The core counts an axis before rows and columns, which some models lack.
            lacking = 1 - call.form.row
            axes = (*([2] * lacking), *base.axes_dim)
            turned = rotations(ids, call.stretch.frequencies(base.theta, axes, call.sigma)[lacking:])
            return turned.transpose(1, 2) if isinstance(base, HiDreamEmbedder) else turned
        stretched_base = copy.copy(base)
        stretched_base.theta = ntk_theta(base.theta, factor)
        return stretched_base(ids)


@dataclass(frozen=True)
class PositionsPatch:
    """The APPLY_MODEL wrapper that describes the running call to :class:`PositionEmbedder`.

    Attributes:
        host: The model's family.
    """

    host: HostFamily = FLUX_ROW
    notices: Notices = field(default_factory=Notices)

    def __call__(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Run one call of the model. x: (B, C, H, W) or (B, C, 1, H, W) latent; other shapes keep their positions."""
        options, base, form = transformer_options or {}, executor.class_obj, self.host.embedder or FLUX_EMBEDDER
        layout, part, grid = None, options.get(FRAME_PART), (0, 0)
        if is_image(x.shape):
            height, width = x.shape[-2:]
            grid = token_grid(height, width, self.host.family.token_cells)
            text = 0 if c_crossattn is None else c_crossattn.shape[1]
            attention = self.host.attention
            layout = attention.planned(grid, text, attention.beside(base.diffusion_model, grid, extra))
        embedder = getattr(base.diffusion_model, form.attribute, None)
        moves = part is not None and not form.moves_itself
        if moves and not isinstance(embedder, PositionEmbedder):
            self.notices.log_once(
                "embedder",
                f"the model's position embedder is a {type(embedder).__name__} of another node, so the positions of "
                "a tile cannot be moved to its place in the frame.",
            )
        with positions(
            layout=layout,
            part=part,
            rope_options=options.get("rope_options"),
            references_follow=extra.get("ref_latents_method") == "uxo" and not form.centred,
            form=form,
            made_in=(base.manual_cast_dtype or base.get_dtype()) if form.centred else None,
            steps=steps_of(form, base.diffusion_model, grid, part),
        ):
            out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **extra)
        # A cache answers later calls without the model, the first one never.
        if part is not None and moves and isinstance(embedder, PositionEmbedder) and not part.run.asked:
            self.notices.log_once(
                "not asked",
                "the model did not ask its position embedder (another node computes it by itself), so the positions "
                "of a tile cannot be moved to its place in the frame.",
            )
        return out


def steps_of(
    form: EmbedderForm, model: Any, grid: tuple[int, int], part: FramePart | None
) -> tuple[tuple[float, float], ...]:
    """The steps between positions that a model may take in a call: the call's own, and those of the whole frame."""
    grids = (grid, part.grid) if part else (grid,)
    return tuple(dict.fromkeys(form.step(model, height * width) for height, width in grids))


def install_embedder(model: ModelPatcher, wrap_foreign: bool = False) -> None:
    """Put :class:`PositionEmbedder` and :class:`PositionsPatch` on a clone, if its family has an embedder.

    Args:
        model: The clone; a second call changes nothing.
        wrap_foreign: Whether another pack's embedder (DyPE) is wrapped too, so that it gets the ids of tiles.
    """
    try:
        host = host_family(model)
    except ValueError:  # Tiles of a model that cannot have windows have positions all the same.
        host = row_of(model.model)
    if host is None or host.embedder is None:
        return
    key = f"diffusion_model.{host.embedder.attribute}"
    current = model.get_model_object(key)
    if is_plain(current) or (wrap_foreign and not isinstance(current, PositionEmbedder)):
        model.add_object_patch(key, PositionEmbedder(current))
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, WRAPPER_KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, PositionsPatch(host))


def is_plain(embedder: Any) -> TypeGuard[EmbedND | HiDreamEmbedder]:
    """Whether it is the host's own embedder; subclasses may compute anything."""
    return type(embedder) in (EmbedND, HiDreamEmbedder)


def foreign_embedder(diffusion_model: torch.nn.Module, form: EmbedderForm = FLUX_EMBEDDER) -> str | None:
    """Class name of a position embedder that does not stretch its base for us, or None."""
    current = getattr(diffusion_model, form.attribute, None)
    if isinstance(current, PositionEmbedder):
        current = current.base
        return None if is_plain(current) else type(current).__name__
    return type(current).__name__


def say_not_stretched(
    stretch: RopeStretch, diffusion_model: torch.nn.Module, notices: Notices, form: EmbedderForm | None = FLUX_EMBEDDER
) -> None:
    """Log once that the model has no embedder, or that another node's is kept, if that matters."""
    if stretch.is_off:
        return
    if form is None:
        notices.log_once(
            "embedder", f"the model takes its positions from a table, so ntk_factor {stretch} is not applied."
        )
        return
    foreign = foreign_embedder(diffusion_model, form)
    if foreign:
        notices.log_once(
            "embedder",
            f"the model's position embedder is a {foreign} of another node; it is kept, "
            f"and ntk_factor {stretch} is not applied.",
        )
