"""Sets a distillation up: teacher and student, their precision and place, the optimizer, and what goes together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bases import quantise
from .config import TrainConfig
from .offload import offload_blocks
from .optimizers import new_optimizer
from .order import Order
from .pair import Pair
from .samples import SampleFolder
from .train import Distillation

if TYPE_CHECKING:
    from accelerate import Accelerator


def set_up(
    transformer: Any,
    samples: SampleFolder,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    backend: str = "auto",
    checkpointing: bool = False,
    offload: bool = False,
) -> Distillation:
    """Makes teacher and student and prepares them with accelerate.

    Args:
        transformer: A diffusers model of a family with windows; it is changed, and moved to the accelerator's device.
        accelerator: Without mixed precision, with ``gradient_accumulation_steps`` equal to the configured accumulation.
        backend: As in :func:`clear_core.clear_attention`.
        checkpointing: Whether to recompute activations in the backward pass, for memory.
        offload: Whether the frozen weights of the blocks stay on the CPU; recomputes activations too.

    Raises:
        ValueError: The accelerator or the samples do not fit, or cannot be had together.
    """
    if accelerator.gradient_accumulation_steps != config.accumulation:
        raise ValueError(
            f"the accelerator accumulates over {accelerator.gradient_accumulation_steps} passes; expected "
            f"the configured {config.accumulation}."
        )
    kind = accelerator.distributed_type.value
    check_together(kind, accelerator, config, offload)
    pair = Pair(transformer, config.spec, rank=config.rank, seed=config.seed, backend=backend)
    guidance = pair.teaching.scale(config.guidance)
    samples.check_fits(pair.teaching.needs(transformer.config, guidance), pair.teaching.even)
    if checkpointing or offload:
        recompute(pair)
    quantise(pair, config.base)
    if kind == "FSDP":
        pair.keep_originals()  # No process will have whole ones.
    transformer.train(False)
    if offload:
        offload_blocks(transformer, accelerator.device)
    else:
        transformer.to(accelerator.device)
    if kind == "DEEPSPEED":
        plugin: Any = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch,
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": config.clip,
            "zero_allow_untested_optimizer": True,
        }
    parameters = list(pair.trained().values())
    own = {id(parameter) for parameter in parameters}
    # Every process has them already, and quantised or offloaded ones cannot be sent around.
    transformer._ddp_params_and_buffers_to_ignore = [
        name for name, parameter in transformer.named_parameters() if id(parameter) not in own
    ]
    # Everything is where it belongs; accelerate would bring offloaded weights to the card. DeepSpeed places by itself.
    placement = None if kind == "DEEPSPEED" else [False, False]
    student, optimizer = accelerator.prepare(transformer, new_optimizer(config, parameters), device_placement=placement)
    student.train(False)
    order = Order(
        samples.shapes_for(pair.teaching.masks),
        config.batch * config.accumulation * accelerator.num_processes,
        config.seed,
    )
    return Distillation(config, accelerator, pair, student, optimizer, samples, order)


def recompute(pair: Pair) -> None:
    """Turns on gradient checkpointing.

    Raises:
        ValueError: diffusers does not hand this family's recomputed blocks what windows need.
    """
    pair.teaching.check_recomputes()
    pair.transformer.enable_gradient_checkpointing()


def check_together(kind: str, accelerator: Any, config: TrainConfig, offload: bool) -> None:
    """Refuse what several processes cannot have.

    Raises:
        ValueError: A quantised base, offload or 8-bit optimizer with sharded weights; ZeRO-3; FSDP 1.
    """
    if kind not in ("DEEPSPEED", "FSDP"):
        return
    name = "DeepSpeed" if kind == "DEEPSPEED" else "FSDP"
    if kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage > 2:
        raise ValueError("ZeRO-3 is not supported; expected a zero_stage of 1 or 2, or use FSDP 2 to share weights.")
    if kind == "FSDP" and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("FSDP 1 cannot hold frozen weights beside trained ones; set fsdp_version to 2 for accelerate.")
    wrong = [
        text
        for text, asked in (
            (f"base {config.base}", kind == "FSDP" and config.base != "plain"),
            ("offload", offload),
            ("optimizer adamw8bit", config.optimizer == "adamw8bit"),
        )
        if asked
    ]
    if wrong:
        raise ValueError(f"{wrong[0]} does not go with {name}; leave one of the two out.")
