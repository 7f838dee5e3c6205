"""The model files of the examples, at the addresses of ComfyUI's own templates."""

from __future__ import annotations

from dataclasses import dataclass

from clear_core.weights.catalogue import CATALOGUE


@dataclass(frozen=True)
class Model:
    """A file that a loader needs, and its address.

    Attributes:
        folder: Folder under ``models``.
        weight: Size of the file, as text; "" if it is not known.
    """

    name: str
    url: str
    folder: str
    weight: str = ""

    @property
    def listed(self) -> str:
        """A link with the size, in Markdown."""
        return f"[{self.name}]({self.url})" + (f" ({self.weight})" if self.weight else "")

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


def of_comfy(repository: str, path: str) -> Model:
    """A file of ComfyUI's own repositories, which lay files out by folder."""
    folder, name = path.split("/")[-2:]
    return Model(name, f"{HUB}/Comfy-Org/{repository}/resolve/main/{path}", folder)


Z_IMAGE = of_comfy("z_image_turbo", "split_files/diffusion_models/z_image_turbo_bf16.safetensors")
QWEN3 = of_comfy("z_image_turbo", "split_files/text_encoders/qwen_3_4b.safetensors")
QWEN_IMAGE = of_comfy("Qwen-Image_ComfyUI", "split_files/diffusion_models/qwen_image_2512_fp8_e4m3fn.safetensors")
QWEN_IMAGE_TEXT = of_comfy("Qwen-Image_ComfyUI", "split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors")
QWEN_IMAGE_VAE = of_comfy("Qwen-Image_ComfyUI", "split_files/vae/qwen_image_vae.safetensors")
KREA2 = of_comfy("Krea-2", "diffusion_models/krea2_turbo_fp8_scaled.safetensors")
KREA2_TEXT = of_comfy("Krea-2", "text_encoders/qwen3vl_4b_fp8_scaled.safetensors")
FLUX2_KLEIN = of_comfy("flux2-klein", "split_files/diffusion_models/flux-2-klein-4b.safetensors")
FLUX2_VAE = of_comfy("flux2-dev", "split_files/vae/flux2-vae.safetensors")
SDXL = Model(
    "sd_xl_base_1.0.safetensors",
    f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "checkpoints",
)
ESRGAN = Model(
    "RealESRGAN_x4plus.safetensors",
    f"{HUB}/Comfy-Org/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors",
    "upscale_models",
)


def clear_weights(stem: str) -> Model:
    """Weights of the catalogue."""
    release = CATALOGUE[stem]
    return Model(release.name, release.url, "clear", f"{release.size / 1e9:.1f} GB")
