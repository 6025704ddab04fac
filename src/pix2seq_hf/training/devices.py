"""How is a model trained on many devices: options of Accelerate, whole weights out of shared ones."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    parse_flag_from_env,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pix2seq_hf.linear_pix2seq import has_bfloat16

logger = logging.getLogger(__name__)


def choose_precision(mixed_precision: str) -> str:
    r"""In what a step is computed: what is asked for, but float32 where a processor would have to emulate bfloat16.

    Without instructions for it (AVX512-BF16, AMX, ARM's) a step in bfloat16 took 17 times as long as one in float32.

    Args:
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
    Returns:
        `str`: One of these."""
    on_processor = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if mixed_precision != "bf16" or not on_processor or has_bfloat16():
        return mixed_precision
    logger.info("training.mixed_precision bf16: this processor has no instructions for it; float32, which is faster")
    return "no"


def build_accelerator_options(
    mixed_precision: str = "no", num_parts: int = 1, use_compile: bool = False
) -> dict[str, Any]:
    r"""The arguments of an `Accelerator` that say how steps are computed.

    Args:
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`; with the last the loss is scaled.
        num_parts (`int`): Backward passes per optimiser step.
        use_compile (`bool`): Compile the layers with `torch.compile`, each kind once.
    Returns:
        `dict[str, Any]`: Keyword arguments."""
    options = {
        "mixed_precision": mixed_precision,
        # The last batches are fetched together: seeing the end of the data must not end an accumulation early.
        "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=num_parts, sync_with_dataloader=False),
        "dataloader_config": DataLoaderConfiguration(split_batches=True),
    }
    if use_compile:
        options["dynamo_plugin"] = TorchDynamoPlugin(backend="inductor", use_regional_compilation=True)
    return options


def is_shared_out(accelerator: Accelerator) -> bool:
    """Whether a process holds only a share of the weights (FSDP, DeepSpeed ZeRO-3)."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def whole_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    r"""The weights and buffers that a checkpoint holds, on every process; all of them call it.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        model (`torch.nn.Module`): As `accelerator.prepare` returned it.
    Returns:
        `dict[str, torch.Tensor]`: By the names of the model that is not wrapped; the tensors of a model that is whole
        are its own, not copies."""
    plain = unwrap(accelerator, model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and is_shared_out(accelerator):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(plain.parameters())):
            return {name: value.detach().clone() for name, value in plain.state_dict().items()}
    return {name: _whole(value.detach()) for name, value in plain.state_dict().items()}


def whole_model(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    r"""A model with all weights, to be saved or evaluated; all processes call it, whoever needs it.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        model (`torch.nn.Module`): As `accelerator.prepare` returned it.
    Returns:
        `torch.nn.Module`: The model itself without its wrapping, or where the processes share it out a copy."""
    plain = unwrap(accelerator, model)
    if not is_shared_out(accelerator):
        return plain
    weights = whole_weights(accelerator, model)
    own_class = next(kind for kind in type(plain).__mro__ if not issubclass(kind, FSDPModule))
    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        copy = own_class(plain.config)  # with random weights, which the training must not notice
    copy.load_state_dict(weights)
    copy.generation_config = plain.generation_config
    return copy.to(accelerator.device).train(plain.training)


def update_average(accelerator: Accelerator, average: Any, model: torch.nn.Module, step: int) -> None:
    r"""Move averaged weights towards those of the model; all processes call it.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        average (`timm.utils.ModelEmaV3`): Made of the model before `accelerator.prepare`, so that each process
            has a whole one.
        model (`torch.nn.Module`): As `accelerator.prepare` returned it.
        step (`int`): Optimiser steps that were done."""
    average.update(_Weights(whole_weights(accelerator, model)), step=step)


class _Weights:
    """What `ModelEmaV3.update` reads of a model."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self._weights = weights

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._weights


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """The model inside what `accelerator.prepare` returned: without DDP, DeepSpeed and compilation."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
