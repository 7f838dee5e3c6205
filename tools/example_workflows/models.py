"""The model files of the examples, at the addresses of ComfyUI's own templates."""

from __future__ import annotations

from dataclasses import dataclass

from clear_core.weights.catalogue import CATALOGUE


@dataclass(frozen=True)
class Model:
    """A file that a loader needs, and its address.

    Attributes:
        folder: Folder under ``models``.
        weight: Size of the file, as text.
    """

    name: str
    url: str
    folder: str
    weight: str

    @property
    def saved(self) -> dict[str, str]:
        """Its entry in a saved node."""
        return {"name": self.name, "url": self.url, "directory": self.folder}


HUB = "https://huggingface.co"
ENCODERS = f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main"

FLUX_DEV = Model(
    "flux1-dev.safetensors",
    f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors",
    "diffusion_models",
    "23.8 GB",
)
CLIP_L = Model("clip_l.safetensors", f"{ENCODERS}/clip_l.safetensors", "text_encoders", "246 MB")
T5 = Model("t5xxl_fp16.safetensors", f"{ENCODERS}/t5xxl_fp16.safetensors", "text_encoders", "9.8 GB")
T5_FP8 = Model(
    "t5xxl_fp8_e4m3fn_scaled.safetensors", f"{ENCODERS}/t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders", "5.2 GB"
)
VAE = Model(
    "ae.safetensors",
    f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
    "vae",
    "335 MB",
)
# On the hub the file has the name of every diffusers file.
CONTROLNET = Model(
    "Flux.1-dev-Controlnet-Upscaler.safetensors",
    f"{HUB}/jasperai/Flux.1-dev-Controlnet-Upscaler/resolve/main/diffusion_pytorch_model.safetensors",
    "controlnet",
    "3.6 GB",
)
URAE_2K = Model(
    "urae_2k_adapter.safetensors", f"{HUB}/Huage001/URAE/resolve/main/urae_2k_adapter.safetensors", "loras", "a LoRA"
)


def clear_weights(stem: str) -> Model:
    """Weights of the catalogue."""
    release = CATALOGUE[stem]
    return Model(release.name, release.url, "clear", f"{release.size / 1e9:.1f} GB")
