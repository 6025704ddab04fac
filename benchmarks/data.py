"""How fast do training batches come: pictures per second of the input pipeline, and what bounds it.

    python benchmarks/data.py COCO_FOLDER [--split train2017] [--image-size 640] [--workers 0 1 2] [--step-ms 50 100]

Measures detection with the defaults of its recipe, from files to batches. Decoding the same files alone is measured in
the same rounds, by Pillow and by torchvision, since other programs slow down both; of all rounds the best counts. CPU
time per picture does not depend on how many cores are free: cores / CPU time is what the machine could do by itself.

For every `--step-ms` a consumer takes a batch and then does nothing for that long, like the host of a busy accelerator;
its share of waiting says whether the workers keep up."""

import argparse
import io
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.collation import RecordDataset, StreamSampler, TrainingCollator
from pix2seq_hf.data.rows import load_pixels
from pix2seq_hf.data.transforms import detection_training_transforms
from pix2seq_hf.task_object_detection import ObjectDetection
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary

REFERENCE_RATE = 450  # pictures per second of the reference's tf.data pipeline on two cores: stated, not measured here
MAX_INSTANCES = 100
WARM_UP_BATCHES = 4


@dataclass(frozen=True)
class Rate:
    """Pictures per second, and CPU seconds that all processes together spent on one."""

    per_second: float
    cpu_seconds: float

    def best_of(self, other: "Rate | None") -> "Rate":
        """Other programs can only slow a measurement down."""
        if other is None:
            return self
        return Rate(max(self.per_second, other.per_second), min(self.cpu_seconds, other.cpu_seconds))


def main(arguments: Sequence[str] | None = None):
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a COCO folder, with annotations/instances_SPLIT.json")
    parser.add_argument("--split", default="train2017", help="default: train2017")
    parser.add_argument("--image-size", type=int, default=640, help="side of the model input (default: 640)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    parser.add_argument("--pictures", type=int, default=320, help="per measurement (default: 320)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--step-ms", type=float, nargs="*", default=[50, 100], help="default: 50 100")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = read_coco(options.folder, options.split).dataset
    measurements: dict[str, Callable[[], Rate]] = {
        "decoding alone, Pillow": lambda: measure_decoding(rows, decode_with_pillow, options.pictures),
        "decoding alone, load_pixels": lambda: measure_decoding(rows, decode_as_here, options.pictures),
    }
    num_processes = max(options.workers)
    if num_processes > 1:
        measurements[f"decoding alone, load_pixels, {num_processes} processes"] = lambda: measure_shared_decoding(
            rows, options.pictures, num_processes
        )
    for num_workers in options.workers:
        measurements[f"pipeline, {num_workers} workers"] = lambda num_workers=num_workers: measure_pipeline(
            rows, options.image_size, options.batch_size, options.pictures, num_workers
        )
    best: dict[str, Rate] = {}
    for _ in range(options.rounds):
        for name, measure in measurements.items():
            best[name] = measure().best_of(best.get(name))
    print(f"{len(rows)} pictures, detection at {options.image_size}, batches of {options.batch_size}, {machine()}")
    print(f"{'':<44}{'pictures/s':>12}{'CPU ms/picture':>16}{'cores / CPU time':>18}")
    for name, rate in best.items():
        possible = (os.cpu_count() or 1) / rate.cpu_seconds
        print(f"{name:<44}{rate.per_second:>12.0f}{1000 * rate.cpu_seconds:>16.2f}{possible:>18.0f}")
    pipeline, decoding = best[f"pipeline, {num_processes} workers"], best["decoding alone, Pillow"]
    times_decoding, share = pipeline.cpu_seconds / decoding.cpu_seconds, pipeline.per_second / REFERENCE_RATE
    print(
        f"{num_processes} workers take {times_decoding:.2f} times the CPU time of decoding with Pillow, "
        f"and do {share:.2f} of the reference's stated {REFERENCE_RATE}/s"
    )
    for milliseconds in options.step_ms:
        wanted = 1000 * options.batch_size / milliseconds
        shares = {
            num_workers: waiting_share(
                rows, options.image_size, options.batch_size, options.pictures, num_workers, milliseconds / 1000
            )
            for num_workers in options.workers
        }
        text = ", ".join(f"{100 * share:.0f} % with {num_workers}" for num_workers, share in shares.items())
        print(f"a step of {milliseconds:g} ms takes {wanted:.0f} pictures/s at most; share of waiting: {text} workers")


def machine() -> str:
    """How many cores there are and how busy they are."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def measure_decoding(rows: Any, decode: Callable[[dict], Any], num_pictures: int) -> Rate:
    """Decode the pictures of a data set one after the other in this process."""
    pictures = [rows[index % len(rows)] for index in range(num_pictures)]
    start, cpu_start = time.perf_counter(), cpu_seconds()
    for picture in pictures:
        decode(picture)
    return Rate(num_pictures / (time.perf_counter() - start), (cpu_seconds() - cpu_start) / num_pictures)


def measure_shared_decoding(rows: Any, num_pictures: int, num_processes: int) -> Rate:
    """Decode in several processes at once."""
    shares = [[rows[index % len(rows)] for index in range(share, num_pictures, num_processes)]
              for share in range(num_processes)]  # fmt: skip
    with ProcessPoolExecutor(num_processes) as pool:
        list(pool.map(decode_all, [share[:2] for share in shares]))  # starts them
        start = time.perf_counter()
        spent = list(pool.map(decode_all, shares))
        return Rate(num_pictures / (time.perf_counter() - start), sum(spent) / num_pictures)


def decode_all(pictures: Sequence[dict]) -> float:
    """Decode pictures and return the CPU seconds."""
    start = time.process_time()
    for picture in pictures:
        decode_as_here(picture)
    return time.process_time() - start


def decode_with_pillow(row: dict) -> np.ndarray:
    """The plain way from a file to an array."""
    with Image.open(io.BytesIO(Path(row["image"]["path"]).read_bytes())) as image:
        return np.array(image.convert("RGB"))


def decode_as_here(row: dict) -> torch.Tensor:
    """What training does."""
    return load_pixels(row["image"]["path"], tuple(row["image_size"]))


def build_loader(
    rows: Any, image_size: int, batch_size: int, num_pictures: int, num_workers: int
) -> torch.utils.data.DataLoader:
    """The data loader of a training run of detection."""
    size = (image_size, image_size)
    collator = TrainingCollator(
        ObjectDetection(), Pix2SeqVocabulary(), detection_training_transforms(size, MAX_INSTANCES), size, 0,
        max_instances_per_image=MAX_INSTANCES,
    )  # fmt: skip
    sampler = StreamSampler(len(rows), 0, num_pictures + WARM_UP_BATCHES * batch_size)
    return torch.utils.data.DataLoader(
        RecordDataset(rows), batch_size, sampler=sampler, collate_fn=collator, num_workers=num_workers
    )


def measure_pipeline(rows: Any, image_size: int, batch_size: int, num_pictures: int, num_workers: int) -> Rate:
    """Take batches as fast as they come. CPU time counts all of the run, the start of workers included."""
    cpu_start = cpu_seconds()
    loader = build_loader(rows, image_size, batch_size, num_pictures, num_workers)
    start, taken = 0.0, 0
    for number, batch in enumerate(loader):
        if number < WARM_UP_BATCHES:
            start = time.perf_counter()
        else:
            taken += len(batch["labels"])
    seconds = time.perf_counter() - start
    del loader
    return Rate(taken / seconds, (cpu_seconds() - cpu_start) / (taken + WARM_UP_BATCHES * batch_size))


def waiting_share(
    rows: Any, image_size: int, batch_size: int, num_pictures: int, num_workers: int, step_seconds: float
) -> float:
    """Share of its time that a consumer waits that needs `step_seconds` for a batch, after the first batches."""
    batches: Iterator[dict] = iter(build_loader(rows, image_size, batch_size, num_pictures, num_workers))
    waited, steps = 0.0, 0
    for number in range(num_pictures // batch_size + WARM_UP_BATCHES):
        start = time.perf_counter()
        next(batches)
        if number >= WARM_UP_BATCHES:
            waited, steps = waited + time.perf_counter() - start, steps + 1
        time.sleep(step_seconds)
    return waited / (waited + steps * step_seconds)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


if __name__ == "__main__":
    main()
