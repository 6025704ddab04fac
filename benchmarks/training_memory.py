r"""How much memory does a training step need, and how much of it is the loss: peaks of fresh processes.

    python benchmarks/training_memory.py                         (ViT-B at 640, batch 8; half an hour and 16 GB)
    python benchmarks/training_memory.py --batch 2               (a quarter of the activations)
    python benchmarks/training_memory.py --only-loss             (the output layer and the loss alone; two minutes)
    python benchmarks/training_memory.py --device cuda           (on a GPU, seconds of the third step by the clock)

One detection step on random pixels: forward, backward, AdamW. Sequences are those of training, 100 objects of five
tokens, most of them noise boxes, whose coordinates have no weight; --objects says how many are real. "All logits" makes
the logits of all positions and takes the loss of them, as `model(..., skip_logits=False)` does; "in parts" is what
training does. The peak is what the process held at most, less what it held before the step: weights and optimiser.
Seconds are those of the processor, so that other programs do not count; set OMP_NUM_THREADS=1 to compare them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import product

GIGABYTE = 1024**3
WAYS = {"all logits": False, "in parts": True}


def main(arguments: list[str] | None = None) -> int:
    """Run every case in a process of its own, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pictures per step")
    parser.add_argument("--objects", type=int, default=7, help="real objects per picture (COCO has 7.3)")
    parser.add_argument("--precision", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--only-loss", action="store_true", help="leave the encoder and the decoder out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: fields of the model, to try a smaller one")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child is not None:
        measure = measure_loss if args.only_loss else measure_step
        print(json.dumps(measure(args.config, args.batch, args.objects, args.device, **args.child)))
        return 0
    print(f"batch {args.batch}, {args.objects} real objects per picture")
    print(
        "| precision | gradient checkpointing | loss | peak above weights and optimiser | in parts / all | seconds |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for precision, checkpointing in product(args.precision, [False] if args.only_loss else [False, True]):
        peaks = {}
        for way in WAYS:
            case = {"precision": precision, "use_checkpointing": checkpointing, "skip_logits": WAYS[way]}
            found = run_child(args, case)
            peaks[way] = found["peak"] - found["before"]
            share = f"{peaks[way] / peaks['all logits']:.2f}" if way == "in parts" else ""
            cells = [precision, "yes" if checkpointing else "no", way, f"{peaks[way] / GIGABYTE:.2f} GiB", share]
            print(f"| {' | '.join(cells)} | {found['seconds']:.2f} |", flush=True)
    return 0


def run_child(args: argparse.Namespace, case: dict) -> dict[str, float]:
    """Measure one case in a fresh process, whose peak is its own."""
    command = [sys.executable, __file__, "--child", json.dumps(case), "--config", json.dumps(args.config)]
    command += ["--batch", str(args.batch), "--objects", str(args.objects), "--device", args.device]
    command += ["--only-loss"] * args.only_loss
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"the measurement of {case} failed ({result.returncode}):\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def held_bytes(device: str) -> int:
    """What this process holds now: of the GPU, or resident."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as statistics:
        return int(statistics.read().split()[1]) * resource.getpagesize()


def peak_bytes(device: str) -> int:
    """The most that this process held: of the GPU since [`held_bytes`], or resident so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes


def build_config(overrides: dict):
    """ViT-B at 640 with 35,000 words, or what is asked for."""
    from pix2seq_hf import Pix2SeqConfig

    options = {"vocab_size": 35000, "id2label": {label: str(label) for label in range(1, 91)}}
    return Pix2SeqConfig.from_preset("vit-b", **{**options, **overrides})


def build_batch(config, batch_size: int, num_objects: int) -> dict:
    """Random pixels, and the sequences that training writes for so many random objects and noise boxes."""
    import numpy as np
    import torch

    from pix2seq_hf import TASKS, Pix2SeqProcessor
    from pix2seq_hf.data.transforms import InjectNoiseBoxes

    vocabulary = Pix2SeqProcessor.from_config(config).vocabulary
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(batch_size):
        corners = rng.uniform(0, 0.5, (num_objects, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.1, 0.5, (num_objects, 2))])
        labels = rng.choice(sorted(config.id2label), num_objects)
        record = {"boxes_yxyx": torch.from_numpy(boxes).float(), "labels": torch.from_numpy(labels)}
        slots = config.max_instances_per_image
        record = InjectNoiseBoxes(slots)(record, rng)
        samples.append(
            TASKS["object_detection"].targets(record, vocabulary, rng, max_instances_per_image=slots).as_dict()
        )
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {"pixel_values": torch.rand(batch_size, 3, *config.image_size), **batch}


def measure_step(
    overrides: dict,
    batch_size: int,
    num_objects: int,
    device: str,
    precision: str,
    use_checkpointing: bool,
    skip_logits: bool,
) -> dict[str, float]:
    """Take a whole training step."""
    import torch

    from pix2seq_hf import Pix2SeqForConditionalGeneration
    from pix2seq_hf.training.optimization import AdamW

    torch.manual_seed(0)
    config = build_config(overrides)
    model = Pix2SeqForConditionalGeneration(config).train().to(device)
    if use_checkpointing:
        model.gradient_checkpointing_enable()
    batch = {name: value.to(device) for name, value in build_batch(config, batch_size, num_objects).items()}
    optimizer = AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():  # the moments of later steps are there before the measurement
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch, skip_logits=skip_logits).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    if device == "cuda":  # the first steps choose kernels
        step(), step()
    clock = time.perf_counter if device == "cuda" else time.process_time
    before, start = held_bytes(device), clock()
    loss = step()
    seconds = clock() - start
    return {"before": before, "peak": peak_bytes(device), "seconds": seconds, "loss": loss}


def measure_loss(
    overrides: dict,
    batch_size: int,
    num_objects: int,
    device: str,
    precision: str,
    use_checkpointing: bool,
    skip_logits: bool,
) -> dict[str, float]:
    """Go from the decoder's hidden states to the loss and back; `use_checkpointing` concerns other parts."""
    import torch

    from pix2seq_hf.loss_pix2seq import projected_loss, sequence_loss

    torch.manual_seed(0)
    config = build_config(overrides)
    batch = {name: value.to(device) for name, value in build_batch(config, batch_size, num_objects).items()}
    head = torch.nn.Linear(config.decoder_hidden_size, config.vocab_size).to(device)
    hidden_states = torch.randn(*batch["labels"].shape, config.decoder_hidden_size, device=device, requires_grad=True)

    before, start = held_bytes(device), time.process_time()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        if skip_logits:
            loss = projected_loss(hidden_states, head, batch["labels"], batch["label_weights"], config.loss_type)
        else:
            loss = sequence_loss(head(hidden_states), batch["labels"], batch["label_weights"], config.loss_type)
    loss.backward()
    seconds = time.process_time() - start
    return {"before": before, "peak": peak_bytes(device), "seconds": seconds, "loss": loss.item()}


if __name__ == "__main__":
    raise SystemExit(main())
