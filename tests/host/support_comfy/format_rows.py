"""What becomes of distilled weights on a model in a format: errors, order, loading in parts, saving.

The model is the demo's trained FLUX, the weights are its windows of radius 8. Every error is that of the model's flow
on noisy held-out scenes, relative to the same graph with the model in bf16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Before a host starts: it has the path of imports to itself.
from demo.tiny_flux.caption import encode_captions
from demo.tiny_flux.data import draw_latents, held_out_scenes

from .boot import PROJECT
from .formats import FORMATS, Format, write_model
from .sampling import conditioning, predict, relative_error, run_node

Weights = Literal["whole", "delta", "low rank"]
KINDS: tuple[Weights, ...] = ("whole", "delta", "low rank")
FILES: dict[Weights, str] = {
    "whole": "format_whole.safetensors",
    "delta": "format_delta.safetensors",
    "low rank": "format_lora.safetensors",
}
RADIUS, RANK, SIGMA = 8, 64, 0.6
LORA, LORA_STRENGTH = "format_user_lora.safetensors", 0.8
TINY = PROJECT / "demo" / "tiny_flux"


@dataclass(frozen=True)
class Row:
    """A format's answers; errors are relative, sizes are bytes.

    Attributes:
        format: Its name.
        size: Of the model's weights, loaded.
        patched_size: The same with distilled weights.
        own: Error of the model alone, without windows.
        merged: Error with weights that were put into the bf16 model before it was quantised.
        patched: Error by kind of weights, loaded whole.
        partial: The same with every weight left in main memory and patched at each use.
        partial_is_whole: Whether both give the same bits, by kind.
        lora: Error with weights and a LoRA.
        lora_order: Whether a LoRA before and after CLEAR Attention give the same bits.
        saved: Whether the model as ModelSave writes it, loaded again, has the same weights; None if
            the host cannot save it.
    """

    format: str
    size: int
    patched_size: int
    own: float
    merged: float
    patched: dict[str, float]
    partial: dict[str, float]
    partial_is_whole: dict[str, bool]
    lora: float
    lora_order: bool
    saved: bool | None


class Laboratory:
    """Measures formats in one host; the model in bf16 is measured once.

    Args:
        side: Of the pictures in px.
        scenes: Number of them.
    """

    def __init__(self, host: Any, pack: Any, side: int = 512, scenes: int = 2) -> None:
        self.host = host
        models = host.base / "models"
        self.tensors = load_file(TINY / "tiny_flux.safetensors")
        base = models / "diffusion_models" / "format_base.safetensors"
        save_file(self.tensors, base)
        shutil.copy(TINY / "windows" / "clear_local_8.safetensors", models / "clear" / FILES["whole"])
        weights: Any = import_module(f"{pack.__name__}.clear_core.weights.delta")
        lora: Any = import_module(f"{pack.__name__}.clear_core.weights.lora")
        whole, delta, low_rank = (models / "clear" / FILES[kind] for kind in KINDS)
        weights.save_delta([base], whole, delta, force=True)
        lora.save_lora([base], whole, low_rank, RANK, force=True)
        write_user_lora(models / "loras" / LORA, self.tensors)
        self.cases = held_out_cases(side, scenes)
        self.plain = write_model(host, FORMATS[0], self.tensors, "format_plain")
        self.expected = self.flows(self.plain())
        self.expected_windowed = {kind: self.flows(self.clear(self.plain(), kind)) for kind in KINDS}
        self.expected_with_lora = self.flows(self.with_lora(self.clear(self.plain(), "whole")))
        self.merged = self.merged_tensors()

    def merged_tensors(self) -> dict[str, Tensor]:
        """The model in bf16 with the trained weights in place, by the host's own patching."""
        patched = self.clear(self.plain(), "whole")
        unload()
        patched.patch_model()
        try:
            found = patched.model.diffusion_model.state_dict()
            # The host has other names for the norms; no weights are trained there.
            return {
                key: found.get(key, tensor).detach().to(torch.bfloat16).clone() for key, tensor in self.tensors.items()
            }
        finally:
            patched.unpatch_model()

    def row(self, form: Format) -> Row:
        """All of a format's answers."""
        load = write_model(self.host, form, self.tensors, "format_model")
        merged = write_model(self.host, form, self.merged, "format_merged")
        patched, partial, same = {}, {}, {}
        for kind in KINDS:
            model = self.clear(load(), kind)
            whole = self.flows(model)
            unload()
            with loaded_in_parts():
                parts = self.flows(model)
            unload()
            patched[kind] = mean_error(whole, self.expected_windowed[kind])
            partial[kind] = mean_error(parts, self.expected_windowed[kind])
            same[kind] = identical(whole, parts)
        before = self.flows(self.clear(self.with_lora(load()), "whole"))
        after = self.flows(self.with_lora(self.clear(load(), "whole")))
        size, model = weight_bytes(load()), self.clear(load(), "whole")
        patched_size = weight_bytes(model)
        saved = self.is_saved(model)
        unload()
        return Row(
            form.name,
            size,
            patched_size,
            own=mean_error(self.flows(load()), self.expected),
            merged=mean_error(self.flows(self.windows(merged())), self.expected_windowed["whole"]),
            patched=patched,
            partial=partial,
            partial_is_whole=same,
            lora=mean_error(after, self.expected_with_lora),
            lora_order=identical(before, after),
            saved=saved,
        )

    def flows(self, model: Any) -> list[Tensor]:
        """The model's flow for every scene."""
        return [predict(model, noisy, SIGMA, prompt) for noisy, prompt in self.cases]

    def clear(self, model: Any, kind: Weights) -> Any:
        """The model with windows and distilled weights."""
        return run_node(self.host.stock("CLEARAttention"), model=model, weights_name=FILES[kind])[0]

    def windows(self, model: Any) -> Any:
        """The model with the same windows and no weights."""
        return run_node(self.host.stock("CLEARAttention"), model=model, radius=RADIUS, down_factor=1)[0]

    def with_lora(self, model: Any) -> Any:
        """The model with a user's LoRA."""
        loader = self.host.stock("LoraLoaderModelOnly")
        return run_node(loader, model=model, lora_name=LORA, strength_model=LORA_STRENGTH)[0]

    def is_saved(self, model: Any) -> bool | None:
        """Whether a loaded model's weights survive the host's ModelSave; None if it cannot save them."""
        held = model.model.diffusion_model.state_dict()
        try:
            again = self.saved(model).model.diffusion_model.state_dict()
        except RuntimeError:
            return None
        return held.keys() == again.keys() and all(same_values(held[key], again[key]) for key in held)

    def saved(self, model: Any) -> Any:
        """The model saved by the host's node and loaded again."""
        folder = self.host.base / "models" / "diffusion_models"
        output = Path(import_module("folder_paths").get_output_directory())
        run_node(self.host.stock("ModelSave"), model=model, filename_prefix="format_saved")
        (made,) = output.glob("format_saved*.safetensors")
        shutil.move(made, folder / "format_saved.safetensors")
        loader = self.host.stock("UNETLoader")
        return run_node(loader, unet_name="format_saved.safetensors", weight_dtype="default")[0]


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; the host may hold those of a file in a wider dtype."""
    if one.dtype == other.dtype:
        return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)))
    return torch.equal(one.float(), other.float())


def held_out_cases(side: int, scenes: int) -> list[tuple[Tensor, Any]]:
    """(noisy latent, conditioning) of scenes that nothing was trained on."""
    cases, generator = [], torch.Generator().manual_seed(0)
    for scene in held_out_scenes(scenes):
        latents = draw_latents([scene], (side, side))
        noise = torch.randn(latents.shape, generator=generator)
        context, pooled = encode_captions([scene.caption])
        cases.append((SIGMA * noise + (1 - SIGMA) * latents, conditioning(context, pooled)))
    return cases


def write_user_lora(path: Path, tensors: dict[str, Tensor]) -> None:
    """A LoRA of rank 4 on all large layers of the blocks, a tenth of each weight in size."""
    generator, found = torch.Generator().manual_seed(3), {}
    for key, weight in tensors.items():
        if not key.endswith(".weight") or weight.ndim != 2 or "blocks" not in key:
            continue
        (rows, columns), stem = weight.shape, f"diffusion_model.{key.removesuffix('.weight')}"
        size = 0.1 * float(weight.float().std()) / 2
        found[f"{stem}.lora_down.weight"] = torch.randn(4, columns, generator=generator)
        found[f"{stem}.lora_up.weight"] = size * torch.randn(rows, 4, generator=generator)
    save_file(found, path)


def mean_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative error, mean over the scenes."""
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    return sum(errors) / len(errors)


def identical(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all flows have the same bits."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weight_bytes(model: Any) -> int:
    """Bytes of a loaded model's weights, as the host counts them: module by module."""
    management: Any = import_module("comfy.model_management")
    management.load_models_gpu([model])
    return int(management.module_size(model.model.diffusion_model))


def unload() -> None:
    """Takes every model's patches off, as the host does between runs."""
    import_module("comfy.model_management").unload_all_models()


@contextmanager
def loaded_in_parts() -> Iterator[None]:
    """The usual path on cards that hold less than the model: weights are patched each time they are cast for use."""
    management: Any = import_module("comfy.model_management")
    load: Callable[..., Any] = management.LoadedModel.model_load

    def little(self: Any, lowvram_model_memory: float = 0, **kwargs: Any) -> Any:
        return load(self, 0.1, **kwargs)

    management.LoadedModel.model_load = little
    try:
        yield
    finally:
        management.LoadedModel.model_load = load


def as_json(row: Row) -> dict[str, Any]:
    """A row, ready for JSON."""
    return asdict(row)
