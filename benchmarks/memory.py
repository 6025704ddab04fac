"""How much memory do the masks of 100 objects need on a CPU: the peak of a fresh process, by outlines written at once.

    python benchmarks/memory.py                          (16 points per outline, a few minutes)
    python benchmarks/memory.py --points 128             (outlines of full length, about half an hour)
    python benchmarks/memory.py --max-sequences 800      (all outlines at once)

The model is ViT-B with 35,000 words and random weights that never end an outline; the picture has 640 x 640 pixels.
Peaks are those of the whole process: Python, torch, weights, and everything that happens until the masks are there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

GIGABYTE = 1024**3
# The one part that grows with the number of outlines and their length: keys and values of self-attention, float32.
BYTES_PER_NUMBER = 4


def main():
    """Run every setting in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--points", type=int, default=16, help="points per outline (the model's limit: 128)")
    parser.add_argument("--max-sequences", type=int, nargs="+", default=[64, 256, 800], help="outlines at once")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.objects, args.samples, args.points, args.max_sequences[0])))
        return
    print(f"{args.objects} objects x {args.samples} outlines of {args.points} points, 640 x 640 pixels, ViT-B, CPU")
    print(f"{'at once':>8} {'loaded':>8} {'encoded':>8} {'peak':>8} {'of it self-attention cache':>28} {'seconds':>8}")
    for max_sequences in args.max_sequences:
        command = [sys.executable, __file__, "--child", "--max-sequences", str(max_sequences)]
        for name in ("objects", "samples", "points"):
            command += [f"--{name}", str(getattr(args, name))]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"the measurement failed:\n{result.stderr}")
        found = json.loads(result.stdout.splitlines()[-1])
        sizes = [f"{found[name] / GIGABYTE:.2f} GB" for name in ("loaded", "encoded", "peak", "cache")]
        print(f"{max_sequences:>8} {sizes[0]:>8} {sizes[1]:>8} {sizes[2]:>8} {sizes[3]:>28} {found['seconds']:>8.0f}")


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes


def measure(num_objects: int, num_samples: int, num_points: int, max_sequences: int) -> dict[str, float]:
    """Segment random boxes of one random picture and return peaks in bytes."""
    import numpy as np
    import torch
    from PIL import Image

    from pix2seq_hf import Pix2SeqConfig, Pix2SeqForConditionalGeneration, Pix2SeqProcessor, TaskOptions
    from pix2seq_hf.engine import TaskRun
    from pix2seq_hf.given_boxes import read_boxes

    config = Pix2SeqConfig.from_preset(
        "vit-b", vocab_size=35000, tasks=["instance_segmentation"], id2label={1: "person"}
    )
    model = Pix2SeqForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.bias[config.pad_token_id] = -1e4  # no outline ends early
    processor = Pix2SeqProcessor.from_config(config)
    loaded = peak_bytes()

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8))
    corners = rng.uniform(0, 300, (num_objects, 2))
    boxes = read_boxes(
        (640, 640), processor.vocabulary, boxes=np.hstack([corners, corners + 300]), labels=[1] * num_objects
    )
    options = TaskOptions(max_points=num_points, num_samples=num_samples, max_sequences=max_sequences, seed=0)
    run = TaskRun(model, processor, [picture], options, [boxes])
    assert len(run.encoded) == 1  # the picture is encoded here
    encoded = peak_bytes()
    start = time.perf_counter()
    masks = [mask for group in run.segment(0, boxes) for mask in group]
    assert len(masks) == num_objects
    at_once = min(max(1, max_sequences // num_samples), num_objects) * num_samples
    numbers = at_once * (6 + 2 * num_points) * 2 * config.decoder_hidden_size * config.decoder_num_hidden_layers
    return {
        "loaded": loaded,
        "encoded": encoded,
        "peak": peak_bytes(),
        "cache": numbers * BYTES_PER_NUMBER,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
