"""What each of two processes does in test_distributed.py: train a tiny model that they share out (FSDP2), and report.

torchrun --nproc_per_node 2 tests/two_processes.py OUTPUT
"""

import copy
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_model
from timm.utils import ModelEmaV3

from pix2seq_hf.training.devices import build_accelerator_options, is_shared_out, update_average, whole_model
from pix2seq_hf.training.loop import train_step
from pix2seq_hf.training.optimization import AdamW
from tiny_models import make_model, make_pictures, make_tokens

NUM_STEPS, NUM_PARTS, MAX_NORM = 3, 2, 0.5


def make_batches(process: int, num_processes: int) -> list[dict[str, torch.Tensor]]:
    """The share of a process in batches of four pictures, each cut into two parts of unequal weight."""
    batches = []
    for part in range(NUM_STEPS * NUM_PARTS):
        weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(part))
        whole = {
            "pixel_values": make_pictures(2, seed=part),
            "labels": make_tokens(2, 6, seed=part),
            "label_weights": weights * (weights > 0.3),
            "sample_rows": torch.arange(2),
            "is_bad": torch.zeros(2, dtype=torch.bool),
        }
        batches.append({name: value.chunk(num_processes)[process] for name, value in whole.items()})
    return batches


def train_tiny(accelerator: Accelerator, is_tied: bool) -> tuple:
    """Take some steps; return model and optimiser as prepared, the averaged model, and the losses."""
    model = make_model(drop_path_rate=0.0, drop_units_rate=0.0, tie_word_embeddings=is_tied).train()
    average = ModelEmaV3(copy.deepcopy(model), decay=0.5)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    stream = iter(make_batches(accelerator.process_index, accelerator.num_processes))
    losses = []
    for step in range(NUM_STEPS):
        found = train_step(accelerator, model, optimizer, {"boxes": stream}, {"boxes": 1.0}, MAX_NORM)
        losses.append(accelerator.reduce(found["boxes"].loss, reduction="mean").item())
        update_average(accelerator, average, model, step + 1)
    return model, optimizer, average, losses


def share_out(accelerator: Accelerator) -> None:
    """Turn FSDP2 on, which Accelerate itself does for GPUs only."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Pix2SeqEncoderLayer", "Pix2SeqDecoderLayer"],
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # from where every state copies it
    accelerator.state.distributed_type = DistributedType.FSDP


def main(output: Path) -> None:
    """Train with tied and with separate tables, save a state, go on, go back to it, and write down what is found."""
    report = {}
    for is_tied in (True, False):
        name = "tied" if is_tied else "separate"
        accelerator = Accelerator(cpu=True, **build_accelerator_options(num_parts=NUM_PARTS))
        share_out(accelerator)
        model, optimizer, average, losses = train_tiny(accelerator, is_tied)
        whole = whole_model(accelerator, model)
        accelerator.save_state(str(output / f"state-{name}"))
        batches = {"boxes": iter(make_batches(accelerator.process_index, accelerator.num_processes))}
        train_step(accelerator, model, optimizer, batches, {"boxes": 1.0}, MAX_NORM)
        moved = whole_model(accelerator, model).state_dict()
        accelerator.load_state(str(output / f"state-{name}"))
        restored = whole_model(accelerator, model).state_dict()
        report[name] = {
            "num_processes": accelerator.num_processes,
            "is_shared_out": is_shared_out(accelerator),
            "own_share": sum(weight.to_local().numel() for weight in model.parameters())
            / sum(weight.numel() for weight in model.parameters()),
            "losses": losses,
            "has_moved": any(not torch.equal(moved[key], value) for key, value in whole.state_dict().items()),
            "is_restored": all(torch.equal(restored[key], value) for key, value in whole.state_dict().items()),
        }
        if accelerator.is_main_process:
            whole.save_pretrained(output / name)
            save_model(average.module, str(output / f"average-{name}.safetensors"))
        accelerator.wait_for_everyone()
        accelerator.free_memory()
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    if Accelerator(cpu=True).is_main_process:
        (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
