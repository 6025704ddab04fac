"""How near is a GPU to its limits: writing tokens of one picture, whole pictures in a batch, and training steps.

Limits are what the work takes at the rates that the device showed in the same run: bytes of weights, keys and values
over the bandwidth of a large copy, or operations over the rate of a large product in bfloat16. Decoding is timed by
graphs, by graphs of a compiled step, and by the loop without graphs; the fastest counts."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CompileConfig
from transformers.modeling_outputs import BaseModelOutput

from machine_limits import MachineSpeed, step_work
from pix2seq_hf.decoding_pix2seq_static import KEPT
from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor
from pix2seq_hf.training.optimization import AdamW
from training_memory import build_batch

NUM_CHECKED_TOKENS = 20
NUM_WARM_UPS = 3
NUM_REPETITIONS = 7
TRAINING_PICTURES = 32  # 30 GB or so
WAYS = {"graphs": {}, "compiled": {"compile_config": CompileConfig()}, "loop": {"disable_compile": True}}


@dataclass(frozen=True)
class GpuGoal:
    r"""What should be reached on a GPU, and what was.

    Args:
        name (`str`): The case.
        summary (`str`): What is done.
        unit (`str`): Of the other numbers.
        goal (`float`): At least, or with `is_limit` at most.
        figure, limit (`float`, *optional*): What was measured, and what the device allows."""

    name: str
    summary: str
    unit: str
    goal: float
    is_limit: bool = False
    figure: float | None = None
    limit: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the goal is met, or cannot be judged here."""
        return self.figure is None or (self.figure <= self.goal if self.is_limit else self.figure >= self.goal)


GPU_GOALS = {
    goal.name: goal
    for goal in (
        GpuGoal("gpu-detection-1", "one picture, 500 tokens, bfloat16", "ms a token", 0.30, is_limit=True),
        GpuGoal("gpu-detection-32", "32 pictures of 100 objects, bfloat16, from pixels to boxes", "pictures a s", 100),
        GpuGoal("gpu-training", "32 pictures a step, bf16", "of the matmul rate", 0.40),
    )
}


def wait(device: torch.device):
    """Wait until a device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], Any], device: torch.device, num_repetitions: int = NUM_REPETITIONS) -> float:
    """Median time of a call after some that warm up, with all that it starts on the device."""
    seconds = []
    for _ in range(NUM_WARM_UPS + num_repetitions):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[NUM_WARM_UPS:])


def measure_device(device: torch.device, num_megabytes: int = 4096, matrix_size: int = 8192) -> MachineSpeed:
    """Bandwidth of a large copy, counting what is read and written, and the rate of a product of random matrices."""
    source = torch.empty(num_megabytes * 2**20, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    left, right = torch.randn(2, matrix_size, matrix_size, device=device).to(torch.bfloat16)
    copying = median_seconds(lambda: target.copy_(source), device)
    multiplying = median_seconds(lambda: left @ right, device)
    return MachineSpeed(2 * source.nbytes / copying, 2.0 * matrix_size**3 / multiplying)


def count_flops(function: Callable[[], Any]) -> int:
    """Operations of the products and attentions of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def check_static(model: torch.nn.Module, encoded: torch.Tensor):
    """Raise ValueError unless repeated steps are used and write, in float32, what the loop writes."""
    asked = {"encoder_outputs": BaseModelOutput(encoded), "task": "object_detection", "do_sample": False}
    asked |= {"max_new_tokens": NUM_CHECKED_TOKENS, "return_dict_in_generate": True}
    expected, found = model.generate(**asked, disable_compile=True), model.generate(**asked)
    decoders = KEPT[model].decoders.values() if model in KEPT else ()
    if not decoders or not all(decoder.graphs or decoder.device.type != "cuda" for decoder in decoders):
        raise ValueError("no step of decoding was captured, so times say nothing")
    if not found.sequences.equal(expected.sequences):
        raise ValueError("repeated steps and the loop disagree: tokens differ, so times say nothing")
    if not torch.allclose(found.class_scores, expected.class_scores, rtol=0, atol=1e-4):
        raise ValueError("repeated steps and the loop disagree: class scores differ, so times say nothing")


@torch.no_grad()
def measure_detection(
    model: torch.nn.Module, num_pictures: int, num_tokens: int, device: torch.device, speed: MachineSpeed
) -> dict[str, dict[str, float]]:
    r"""Time detection in bfloat16.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): In float32, on any device; it is moved.
        num_pictures, num_tokens (`int`): Pictures at once, and tokens of each.
        device (`torch.device`), speed (`MachineSpeed`): Where, and its rates.
    Returns:
        `dict[str, dict[str, float]]`: seconds of a `step` and of a `picture`, by way of `WAYS`, and their `limit`."""
    config, processor = model.config, Pix2SeqProcessor.from_config(model.config)
    pixel_values = torch.rand(num_pictures, config.num_channels, *config.image_size)
    pixel_values = pixel_values.pin_memory() if device.type == "cuda" else pixel_values
    model.to(device)
    encoder = model.get_encoder()
    check_static(model, encoder(pixel_values[:2].to(device)).last_hidden_state)
    model.to(torch.bfloat16)

    def encode() -> torch.Tensor:
        return encoder(pixel_values.to(device, non_blocking=True)).last_hidden_state

    def write(encoded: torch.Tensor, **options) -> Any:
        asked = {"task": "object_detection", "max_new_tokens": num_tokens, "return_dict_in_generate": True}
        return model.generate(encoder_outputs=BaseModelOutput(encoded), **asked, **options)

    def find(**options):
        sizes = [(480, 640)] * num_pictures
        processor.post_process_generation(write(encode(), **options), task="object_detection", target_sizes=sizes)

    encoded = encode()
    work = step_work(model, encoded.shape[1], num_pictures, num_pictures)
    encoding = count_flops(encode) / speed.flops_per_second
    limit = work.limit(speed)
    steps, pictures = {"limit": limit}, {"limit": (encoding + num_tokens * limit) / num_pictures}
    for way, options in WAYS.items():
        steps[way] = median_seconds(lambda: write(encoded, **options), device) / num_tokens  # noqa: B023
        pictures[way] = median_seconds(lambda: find(**options), device) / num_pictures  # noqa: B023
    return {"step": steps, "picture": pictures}


def measure_training(model: torch.nn.Module, num_pictures: int, device: torch.device, speed: MachineSpeed) -> float:
    """The share of the matmul rate that the operations of a training step reach, in bf16 with weights in float32."""
    model.train().to(device)
    batch = {name: value.to(device) for name, value in build_batch(model.config, num_pictures, 7).items()}
    optimizer = AdamW(model.parameters(), lr=0.0)

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return count_flops(step) / median_seconds(step, device) / speed.flops_per_second


def measure_gpu(
    names: Iterable[str], build_model: Callable[[], torch.nn.Module], device: torch.device, say=print
) -> list[dict[str, Any]]:
    r"""Measure cases on a GPU.

    Args:
        names (`Iterable[str]`): Keys of `GPU_GOALS`.
        build_model (`Callable`): Makes the model in float32.
        device (`torch.device`): The GPU.
        say (`Callable`): Called with what is being measured.
    Returns:
        `list[dict]`: Per case `name`, `figure`, `limit`, and the seconds and rates that they come from."""
    say("bandwidth and matmul rate of the GPU")
    speed, found = measure_device(device), []
    for name in names:
        say(name)
        torch.manual_seed(0)
        model = build_model()
        if name == "gpu-training":
            share = measure_training(model, TRAINING_PICTURES, device, speed)
            found.append({"name": name, "figure": share, "limit": 1.0})
        else:
            num_pictures = int(name.rsplit("-", 1)[1])
            seconds = measure_detection(model, num_pictures, 5 * model.config.max_instances_per_image, device, speed)
            of = seconds["step" if num_pictures == 1 else "picture"]
            fastest = min(of[way] for way in WAYS)
            if num_pictures == 1:
                figures = {"figure": fastest * 1000, "limit": of["limit"] * 1000}
            else:
                figures = {"figure": 1 / fastest, "limit": 1 / of["limit"]}
            found.append({"name": name, **figures, "seconds": seconds})
        found[-1] |= {"bytes_per_second": speed.bytes_per_second, "flops_per_second": speed.flops_per_second}
        del model
    return found


def gpu_table(goals: Iterable[GpuGoal]) -> list[list[str]]:
    """Rows of goals, figures, limits, and how much of the limit is reached."""
    rows = [["", "goal", "figure", "limit", "reached", ""]]
    for goal in goals:
        text = f"{'at most' if goal.is_limit else 'at least'} {goal.goal:g} {goal.unit}"
        cells = [f"{goal.name}: {goal.summary}", text]
        if goal.figure is None or goal.limit is None:
            rows.append([*cells, "", "", "", "not measured here"])
            continue
        reached = goal.limit / goal.figure if goal.is_limit else goal.figure / goal.limit
        met = "met" if goal.is_met else "MISSED"
        rows.append([*cells, f"{goal.figure:.3g}", f"{goal.limit:.3g}", f"{reached:.0%}", met])
    return rows
