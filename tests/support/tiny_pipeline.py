"""A whole diffusers FLUX pipeline, tiny and with random weights: VAE, both text encoders with tokenizers of letters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from .distillation import teacher

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_pipeline(folder: Path, seed: int = 0) -> None:
    """Writes the pipeline into a folder, as ``--model`` takes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            shift_factor=0.1,
            scaling_factor=0.5,
        )
        words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
        t5 = T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=CLIPTokenizer({word: index for index, word in enumerate(words)}, [], model_max_length=77),
        text_encoder_2=t5,
        tokenizer_2=T5TokenizerFast(pieces, extra_ids=0, model_max_length=512),
        transformer=teacher(seed),
    ).save_pretrained(folder)
