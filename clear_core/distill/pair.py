"""Teacher and student in one transformer: windows and trained layers are on for the student, off for the teacher.

One model in memory is both. Only the trained parts exist twice.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..families import ModelShape
from ..integrations.diffusers import apply_clear
from ..integrations.diffusers_model import attention_modules, shape_of
from ..number_checks import check_number
from ..spec import ClearSpec
from ..weights import TRAINED_SETS
from ..weights.naming import DIFFUSERS, STREAMS, TRAINED, Stream, spatial_name
from .families import Teaching, teaching_of
from .layers import FullPart, LowRankPart, Part, TrainedLayer

ENDS = {"weight": "weight", "bias": "bias", "down": "lora_A.weight", "up": "lora_B.weight"}
"""Ends of the trained names, by parameter of a part. The bias of a low-rank part is ``lora_B.bias``, as in PEFT."""


@dataclass(frozen=True)
class Place:
    """Where a trained projection is.

    Attributes:
        name: Canonical name of the projection, ``transformer_blocks.0.attn.to_q``.
        path: Of the module that holds it; several projections may share one.
        index: Its place among the trained parts of the module.
    """

    name: str
    path: str
    index: int


def blocks_of(shape: ModelShape) -> list[tuple[Stream, int]]:
    """(stream, index) of every block, double ones first."""
    counts = zip(STREAMS, (shape.num_double, shape.num_single), strict=True)
    return [(stream, index) for stream, count in counts for index in range(count)]


def trained_places(shape: ModelShape) -> list[Place]:
    """Every projection that is trained: queries, keys, values of the image, and the outputs of double blocks."""
    fused = TRAINED_SETS[shape.family.name].fused
    places: list[Place] = []
    for stream, number in blocks_of(shape):
        block = f"{DIFFUSERS.blocks[stream]}.{number}"
        for index, part in enumerate(TRAINED[stream]):
            if stream in fused:
                places.append(Place(f"{block}.attn.{part}", f"{block}.{fused[stream]}", index))
            else:
                places.append(Place(f"{block}.attn.{part}", f"{block}.attn.{part}", 0))
    return places


class Pair:
    """A transformer that is teacher and student in turn.

    Attributes:
        transformer: The model; it is the student but within :meth:`teacher`.
        teaching: How its family is taught.
        shape: Family and numbers of blocks.
        spec: The student's window.
        rank: Of low-rank additions; None if whole weights are trained.
        compute_dtype: Precision of the model's own products.
        places: The trained projections.
        originals: The model's own weights by projection, where the base was quantised since; else empty.

    Args:
        transformer: A diffusers model of a family with windows. It is changed, and not given back.
        spec: The window.
        rank: As above, 1 or more; from the width of the model on, whole matrices are added.
        seed: Of the directions of low-rank additions.
        backend: As in :func:`clear_core.clear_attention`.

    Raises:
        ValueError: The rank is out of range, the model is fed more than a latent, or its projections are fused.
        TypeError: The model's family cannot be taught.
    """

    def __init__(
        self, transformer: Any, spec: ClearSpec, *, rank: int | None = None, seed: int = 0, backend: str = "auto"
    ) -> None:
        if rank is not None:
            check_number("rank", rank, 1, whole=True)
        self.transformer = transformer
        self.teaching: Teaching = teaching_of(transformer)
        self.teaching.check_inputs(transformer.config)
        self.shape = shape_of(transformer)
        self.spec = spec
        self.rank = rank
        # Before it is wrapped: float32 parts are no part of the model's precision.
        self.compute_dtype: torch.dtype = transformer.dtype
        self.originals: dict[str, tuple[Tensor, Tensor | None]] = {}
        transformer.requires_grad_(False)
        if any(getattr(attn, "fused_projections", False) for _, attn in attention_modules(transformer)):
            raise ValueError("the model's projections are fused; load it without fuse_qkv_projections().")
        # Fixed for the whole training: the teacher cannot teach sizes beyond its own training.
        self.handle = apply_clear(transformer, spec, ntk_factor=1.0, proportional_attention="off", backend=backend)
        self._share_pooling()
        self.places = trained_places(self.shape)
        self._wrap(seed)

    def _share_pooling(self) -> None:
        """Gives both attentions of a block (SD3.5 Medium has two) one pooling weight, as files and hosts have it."""
        first: dict[tuple[Stream, int], nn.Parameter] = {}
        for block, attn in attention_modules(self.transformer):
            processor: Any = attn.processor
            if processor.spatial_weight is not None:
                processor.spatial_weight = first.setdefault(block, processor.spatial_weight)

    def _wrap(self, seed: int) -> None:
        width = self.shape.width
        by_path: dict[str, list[Place]] = {}
        for place in self.places:
            by_path.setdefault(place.path, []).append(place)
        for path, places in by_path.items():
            parent, name = path.rsplit(".", 1)
            base = self.transformer.get_submodule(path)
            parts: list[Part] = []
            for place in places:
                rows = slice(place.index * width, (place.index + 1) * width)
                weight, bias = base.weight[rows], None if base.bias is None else base.bias[rows]
                if self.rank is None:
                    parts.append(FullPart(weight, bias))
                else:
                    parts.append(LowRankPart(weight, bias, min(self.rank, width), seed + self.places.index(place)))
            setattr(self.transformer.get_submodule(parent), name, TrainedLayer(base, parts, width))
        for parameter in self.trained().values():
            parameter.requires_grad_(True)

    @property
    def layers(self) -> list[TrainedLayer]:
        """The layers with trained parts."""
        return [module for module in self.transformer.modules() if isinstance(module, TrainedLayer)]

    def part(self, place: Place) -> Part:
        """The trained part of a projection."""
        part = self.transformer.get_submodule(f"{place.path}.parts.{place.index}")
        assert isinstance(part, (FullPart, LowRankPart))
        return part

    def paths(self) -> dict[str, str]:
        """Name of each trained parameter in the transformer, by its canonical name."""
        found: dict[str, str] = {}
        for place in self.places:
            low_rank = self.rank is not None
            for name, _ in self.part(place).named_parameters():
                end = "lora_B.bias" if low_rank and name == "bias" else ENDS[name]
                found[f"{place.name}.{end}"] = f"{place.path}.parts.{place.index}.{name}"
        if self.spec.pools:
            for block in blocks_of(self.shape):
                name = spatial_name(*block)
                found[name] = name
        return found

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by canonical name."""
        return {name: self.transformer.get_parameter(path) for name, path in self.paths().items()}

    @contextmanager
    def teacher(self) -> Generator[Any]:
        """The transformer as the teacher: dense attention and the model's own weights."""
        layers = self.layers
        for layer in layers:
            layer.on = False
        try:
            with self.handle.paused():
                yield self.transformer
        finally:
            for layer in layers:
                layer.on = True

    def keep_originals(self) -> None:
        """Copies the model's own trained weights to the CPU: a base that is quantised later no longer has them."""
        width = self.shape.width
        for place in self.places:
            base: Any = self.transformer.get_submodule(f"{place.path}.base")
            rows = slice(place.index * width, (place.index + 1) * width)
            bias = None if base.bias is None else base.bias[rows].detach().to("cpu", copy=True)
            self.originals[place.name] = base.weight[rows].detach().to("cpu", copy=True), bias

    def original(self, place: Place) -> tuple[Tensor, Tensor | None]:
        """The model's own weight and bias of a projection."""
        if place.name in self.originals:
            return self.originals[place.name]
        base: Any = self.transformer.get_submodule(f"{place.path}.base")
        rows = slice(place.index * self.shape.width, (place.index + 1) * self.shape.width)
        return base.weight[rows].detach(), None if base.bias is None else base.bias[rows].detach()
