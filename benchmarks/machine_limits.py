"""How fast could a decoding step be on this machine: its memory bandwidth, its matmul rate, and what a step must do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pix2seq_hf.linear_pix2seq import linear


@dataclass(frozen=True)
class MachineSpeed:
    """The best rates seen: bytes read from memory per second, and floating-point operations of a matmul per second."""

    bytes_per_second: float
    flops_per_second: float

    def best_of(self, other: "MachineSpeed") -> "MachineSpeed":
        """Other programs can only slow a measurement down, so of two the higher rates are nearer to the truth."""
        return MachineSpeed(
            max(self.bytes_per_second, other.bytes_per_second), max(self.flops_per_second, other.flops_per_second)
        )


@dataclass(frozen=True)
class StepWork:
    r"""What a decoding step cannot avoid: one token of every sequence, keys and values of the pictures known.

    Args:
        weight_bytes (`int`): Decoder layers and final norm, without the projections to the pictures' keys and values.
        picture_bytes (`int`): Keys and values of the pictures, all layers.
        output_bytes (`float`): Mean of the rows of the output layer that the task needs.
        flops (`float`): Operations of all of that, for all sequences."""

    weight_bytes: int
    picture_bytes: int
    output_bytes: float
    flops: float

    @property
    def total_bytes(self) -> float:
        """What is read in a step. Keys and values of the sequence itself are left out: a few per cent at most."""
        return self.weight_bytes + self.picture_bytes + self.output_bytes

    def byte_limit(self, speed: MachineSpeed) -> float:
        """Seconds that reading takes."""
        return self.total_bytes / speed.bytes_per_second

    def arithmetic_limit(self, speed: MachineSpeed) -> float:
        """Seconds that computing takes."""
        return self.flops / speed.flops_per_second

    def limit(self, speed: MachineSpeed) -> float:
        """Seconds that no implementation can beat: reading and computing may overlap at best."""
        return max(self.byte_limit(speed), self.arithmetic_limit(speed))


def num_output_rows(config: Any, task: str) -> float:
    r"""Rows of the output layer that a step needs, on average.

    Detection: the coordinate bins at four of five slots; all rows at the class slot, whose softmax runs over the
    vocabulary. Outlines: the bins. Keypoints: all rows, for the probability of every point."""
    if task == "instance_segmentation":
        return config.quantization_bins
    if task == "object_detection":
        return (4 * config.quantization_bins + config.vocab_size) / 5
    return config.vocab_size


def step_work(
    model: torch.nn.Module, num_image_tokens: int, num_pictures: int, num_rows: int, task: str = "object_detection"
) -> StepWork:
    r"""Count the work of a step of a model.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): The model.
        num_image_tokens (`int`): Tokens of an encoded picture.
        num_pictures, num_rows (`int`): Pictures, and sequences of all pictures together.
        task (`str`): What is written."""
    config, decoder = model.config, model.model.decoder
    once_per_picture = {
        parameter
        for layer in decoder.layers
        for projection in (layer.cross_attention.k_proj, layer.cross_attention.v_proj)
        for parameter in projection.parameters()
    }
    parameters = [*decoder.layers.parameters(), *decoder.norm.parameters()]
    num_weights = sum(parameter.numel() for parameter in parameters if parameter not in once_per_picture)
    item_size, size = model.lm_head.weight.element_size(), config.decoder_hidden_size
    num_picture_values = 2 * num_image_tokens * size * len(decoder.layers)  # per picture
    num_output_values = num_output_rows(config, task) * size
    return StepWork(
        weight_bytes=num_weights * item_size,
        picture_bytes=num_pictures * num_picture_values * item_size,
        output_bytes=num_output_values * item_size,
        flops=2.0 * num_rows * (num_weights + num_picture_values + num_output_values),
    )


def measure_machine(num_megabytes: int = 256, matrix_size: int = 2048, num_runs: int = 8) -> MachineSpeed:
    r"""Measure memory bandwidth and matmul rate of the CPU, float32, with the number of threads that torch uses.

    Args:
        num_megabytes (`int`): What is read; must exceed the caches by far.
        matrix_size (`int`): Side of the square matrices that are multiplied.
        num_runs (`int`): Runs of each kind; the fastest counts."""
    columns = 4096
    table = torch.ones(max(num_megabytes * 2**20 // 4 // columns, 1), columns)
    vector, matrix = torch.ones(columns), torch.ones(matrix_size, matrix_size)
    reading = min(fastest(lambda: table.mv(vector), num_runs), fastest(table.sum, num_runs))
    with torch.no_grad():  # by MKL and by oneDNN
        multiplying = min(
            fastest(lambda: matrix.mm(matrix), num_runs), fastest(lambda: linear(matrix, matrix), num_runs)
        )
    return MachineSpeed(table.nbytes / reading, 2.0 * matrix_size**3 / multiplying)


def fastest(function: Callable[[], object], num_runs: int) -> float:
    """Seconds of the fastest of `num_runs` calls after one that warms up."""
    function()
    durations = []
    for _ in range(num_runs):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations)
