"""How fast is decoding: `generate`, the reference's way of decoding the same model, and the limit of the machine.

examples:
  python benchmarks/decode.py --goals                          # everything, about ten minutes on two quiet cores
  python benchmarks/decode.py --goals --case detection-1       # its lines; exit code 1 if one misses its goal
  python benchmarks/decode.py --case masks --tokens 50 --repetitions 5 --json speed.json

Weights are random: speed does not depend on them. Before anything is timed, both ways must give the same greedy
tokens, the same logits to 1e-4 and, in detection, the same class scores to 1e-5. Then a repetition times, one after the
other,
  the encoder, as it is and in plain PyTorch;
  `generate(encoder_outputs=..., task=...)` as a user calls it: the task's settings and grammar, scores recorded, all
    tokens; with weights in float32, in bfloat16 where the processor knows it, with weights rounded to int8, and in
    float32 by the library's own loop;
  the reference's way in plain PyTorch, float32: a few steps, spread evenly over the sequence. The cost of a step grows
    linearly with the tokens before it, so their mean is the mean over the sequence. What the reference does after the
    last step, class scores from the logits it kept, is not counted.
Times are medians over the repetitions (smallest to largest in brackets), ratios are taken within each repetition. A
step writes one token of every sequence; a token's time is the step's divided by the sequences; a picture's is its part
of encoder and steps. The number of threads is torch's own choice: set OMP_NUM_THREADS to change it.

With --goals the cases gpu-* are measured too, where there is a GPU with CUDA."""

import argparse
import contextlib
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.modeling_outputs import BaseModelOutput

from decode_gpu import GPU_GOALS, GpuGoal, gpu_table, measure_gpu
from machine_limits import MachineSpeed, StepWork, measure_machine, step_work
from pix2seq_hf.benchmark import describe, describe_machine
from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.generation_pix2seq import build_generation_config, top_logits
from pix2seq_hf.linear_pix2seq import has_bfloat16
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import TASKS
from pix2seq_hf.progress import open_bar
from pix2seq_hf.tokenization_pix2seq import class_labels_and_scores
from reference_decoding import ReferenceDecoder, in_plain_torch

NUM_CHECKED_TOKENS = 12  # by both ways; fewer of many sequences
LOGITS_TOLERANCE = 1e-4
SCORES_TOLERANCE = 1e-5
TOKENS_PER_OBJECT = 5
TOP_P = 0.4  # the reference's
WAYS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "stock": "library's loop"}
ROUNDED = ("bfloat16", "int8")


@dataclass(frozen=True)
class Case:
    r"""One part of the tables.

    Args:
        summary (`str`): What is decoded.
        pictures (`int`): How many.
        tokens (`int`): Written per sequence.
        task (`str`): A key of `TASKS`.
        objects, samples (`int`): Prompts per picture, and sequences per prompt.
        overrides (`Mapping[str, Any]`): Fields of the preset that differ.
        preset (`str`): Of [`Pix2SeqConfig`]."""

    summary: str
    pictures: int
    tokens: int = 500
    task: str = "object_detection"
    objects: int = 1
    samples: int = 1
    # 35,000 words is the vocabulary of the multi-task checkpoints.
    overrides: Mapping[str, Any] = field(default_factory=lambda: {"vocab_size": 35000})
    preset: str = "vit-b"

    @property
    def rows(self) -> int:
        """Sequences that are written at once."""
        return self.pictures * self.objects * self.samples

    def describe(self) -> str:
        """The case as one line."""
        return "; ".join([self.summary, self.preset, *(f"{key} {value}" for key, value in self.overrides.items())])


CASES = {
    "detection-1": Case("one picture", 1),
    "detection-8": Case("eight pictures at once", 8),
    "masks": Case(
        "ten objects of one picture, eight outlines each", 1, 200, "instance_segmentation", objects=10, samples=8
    ),
    "keypoints": Case("twenty persons, each in a cut of its own", 20, 34, "keypoint_detection"),
}
# How many times as fast as the reference's way, with weights in float32 and with rounded ones.
GOALS = {"detection-1": (10, 20), "detection-8": (20, 35), "masks": (60, 90), "keypoints": (20, 30)}


@dataclass
class Measurement:
    r"""What was measured for a case.

    Args:
        case (`str`): Its name in `CASES`.
        pictures, rows (`int`): Pictures, and sequences of all of them.
        num_tokens (`int`): Tokens written per sequence.
        logits_difference (`float`): Largest difference of the logits of the two ways.
        work (`StepWork`): What no step in float32 can avoid.
        encoder_seconds (`dict[str, list[float]]`): By way, `"ours"` and `"plain"`; per repetition, all pictures.
        our_seconds (`dict[str, list[float]]`): By way, see `WAYS`; per repetition, the mean step of `generate`.
        reference_seconds (`list[float]`): Per repetition, the mean of the reference's steps."""

    case: str
    pictures: int
    rows: int
    num_tokens: int
    logits_difference: float
    work: StepWork
    encoder_seconds: dict[str, list[float]] = field(default_factory=dict)
    our_seconds: dict[str, list[float]] = field(default_factory=dict)
    reference_seconds: list[float] = field(default_factory=list)

    def ratios(self, way: str = "float32") -> list[float]:
        """How many times faster our steps are, per repetition."""
        return [theirs / ours for ours, theirs in zip(self.our_seconds[way], self.reference_seconds, strict=True)]

    def picture_seconds(self, step_seconds: list[float]) -> list[float]:
        """Encoder and all steps, per picture and repetition."""
        pairs = zip(self.encoder_seconds["ours"], step_seconds, strict=True)
        return [(encoder + step * self.num_tokens) / self.pictures for encoder, step in pairs]


@dataclass(frozen=True)
class Goal:
    """A figure with what it should be at least, or with `is_limit` at most."""

    name: str
    goal: float
    figure: float
    is_limit: bool = False

    @property
    def is_met(self) -> bool:
        return self.figure <= self.goal if self.is_limit else self.figure >= self.goal


class NeverStop(StoppingCriteria):
    """A criterion that [`~decoding_pix2seq.decode`] does not know, so that the library's loop has to run."""

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        return torch.zeros_like(input_ids[:, 0], dtype=torch.bool)


def build_model(case: Case) -> Pix2SeqForConditionalGeneration:
    """The model of a case with random weights that never end a sequence, ready for `generate`."""
    config = Pix2SeqConfig.from_preset(case.preset, tasks=[case.task], **case.overrides)
    model = Pix2SeqForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.bias[config.pad_token_id] = -100.0
    model.generation_config = build_generation_config(config)
    return model


def make_prompts(case: Case, config: Pix2SeqConfig) -> torch.LongTensor:
    """Prompts `(pictures * objects, length)`: the task, and for tasks about boxes a box and a class."""
    task = TASKS[case.task]
    start = torch.full((case.pictures * case.objects, 1), task.prompt_id)
    if not task.needs_boxes:
        return start
    corners = config.coord_vocab_shift + torch.randint(config.quantization_bins, (len(start), 4))
    return torch.cat([start, corners, torch.full_like(start, config.base_vocab_shift + 1)], 1)


def choose_best(logits: torch.Tensor) -> torch.Tensor:
    """Greedy choice."""
    return logits.argmax(-1)


def choose_from_nucleus(logits: torch.Tensor) -> torch.Tensor:
    """The reference's choice: sample from the nucleus."""
    return top_logits(logits, p=TOP_P).softmax(-1).multinomial(1)[:, 0]


def check_equal(
    model: Pix2SeqForConditionalGeneration, encoded: torch.Tensor, num_tokens: int, prompts: torch.Tensor
) -> float:
    r"""Decode greedily both ways and compare.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): The model.
        encoded (`torch.FloatTensor` of shape `(batch, num_tokens, decoder_hidden_size)`): Pictures.
        num_tokens (`int`): Tokens to write.
        prompts (`torch.LongTensor` of shape `(rows, length)`): All of the first picture first.
    Returns:
        `float`: The largest difference of the logits.
    Raises:
        ValueError: If tokens or labels differ, logits by more than 1e-4 or scores by more than 1e-5."""
    greedy = {"do_sample": False, "num_return_sequences": 1, "max_new_tokens": num_tokens, "decoder_input_ids": prompts}
    greedy |= {"return_dict_in_generate": True}
    with_logits = model.generate(encoder_outputs=BaseModelOutput(encoded), output_logits=True, **greedy)
    plain = model.generate(encoder_outputs=BaseModelOutput(encoded), **greedy)  # asks for nothing, like what is timed
    length = prompts.shape[1]
    reference = ReferenceDecoder(model, encoded, len(prompts), length + num_tokens)
    reference.start(prompts, choose_best)
    for position in range(length, length + num_tokens - 1):
        reference.step(position, choose_best)
    logits = reference.logits[length:]  # (num_tokens, rows, vocab_size)

    difference = (torch.stack(with_logits.logits) - logits).abs().max().item()
    if not difference <= LOGITS_TOLERANCE:
        raise ValueError(f"the two ways of decoding disagree: logits differ by {difference:.3g}, so times say nothing")
    pairs = [("tokens", with_logits.sequences, reference.tokens.T), ("tokens", plain.sequences, reference.tokens.T)]
    if plain.get("class_labels") is not None:
        labels, scores = class_labels_and_scores(
            logits[TOKENS_PER_OBJECT - 1 :: TOKENS_PER_OBJECT].transpose(0, 1),  # (rows, num_objects, vocab_size)
            model.config.base_vocab_shift,
            model.config.coord_vocab_shift,
        )
        pairs.append(("class labels", plain.class_labels, labels))
    for name, ours, expected in pairs:
        if not torch.equal(ours, expected):
            raise ValueError(f"the two ways of decoding disagree: {name} differ, so times say nothing")
    if len(pairs) > 2 and not torch.allclose(plain.class_scores, scores, rtol=0, atol=SCORES_TOLERANCE):
        raise ValueError("the two ways of decoding disagree: class scores differ, so times say nothing")
    return difference


@torch.no_grad()
def measure_case(name: str, case: Case, num_tokens: int, num_repetitions: int, num_reference_steps: int, bar):
    r"""Check and time a case.

    Args:
        name (`str`), case ([`Case`]): An item of `CASES`.
        num_tokens (`int`): Tokens to write per sequence.
        num_repetitions (`int`): How often everything is timed.
        num_reference_steps (`int`): Steps of the reference's way in a repetition.
        bar (`tqdm`): Advances by one per repetition and one for the check.
    Returns:
        [`Measurement`]."""
    bar.set_postfix_str("")
    bar.set_description(f"{name}: check")
    model = build_model(case)
    pixel_values = torch.rand(case.pictures, model.config.num_channels, *model.config.image_size)
    encoder, plain_encoder = model.get_encoder(), in_plain_torch(model.get_encoder())
    encoded = encoder(pixel_values).last_hidden_state
    prompts = make_prompts(case, model.config)
    rows_of_prompts = prompts.repeat_interleave(case.samples, 0)
    num_checked = min(num_tokens, max(NUM_CHECKED_TOKENS // case.rows, 2) if case.rows > 8 else NUM_CHECKED_TOKENS)
    result = Measurement(
        case=name,
        pictures=case.pictures,
        rows=case.rows,
        num_tokens=num_tokens,
        logits_difference=check_equal(model, encoded, num_checked, rows_of_prompts),
        work=step_work(model, encoded.shape[1], case.pictures, case.rows, case.task),
    )
    bar.update()

    # The sequence that the reference's steps continue at any place: its layer inputs are computed in one pass.
    sequence = torch.randint(model.config.vocab_size, (case.rows, num_tokens))
    sequence[:, : prompts.shape[1]] = rows_of_prompts[:, :num_tokens]
    reference = ReferenceDecoder(model, encoded, case.rows, num_tokens + 1)
    reference.start(sequence, choose_from_nucleus)
    positions = spread_positions(num_tokens, num_reference_steps)
    models = {"float32": model, "stock": model}
    if has_bfloat16():  # emulated it is slower than float32 from eight rows on
        models["bfloat16"] = copy.deepcopy(model).to(torch.bfloat16)
    with contextlib.suppress(ValueError):  # without kernels for it
        models["int8"] = copy.deepcopy(model).use_int8()

    for repetition in range(num_repetitions):
        place = f"{name} {repetition + 1}/{num_repetitions}"
        bar.set_description(f"{place}: encoder")
        for way, network in (("ours", encoder), ("plain", plain_encoder)):
            seconds = duration(lambda network=network: network(pixel_values))
            result.encoder_seconds.setdefault(way, []).append(seconds)
        for way, network in models.items():
            bar.set_description(f"{place}: generate, {WAYS[way]}")
            outputs = BaseModelOutput(encoded.to(network.dtype))
            options = {"task": case.task, "max_new_tokens": num_tokens, "decoder_input_ids": prompts}
            options |= {"num_return_sequences": case.samples} if case.samples > 1 else {}
            options |= {"stopping_criteria": [NeverStop()]} if way == "stock" else {}
            seconds = duration(lambda: decode(network, case, num_tokens, encoder_outputs=outputs, **options))  # noqa: B023
            result.our_seconds.setdefault(way, []).append(seconds / num_tokens)
        bar.set_description(f"{place}: reference's way")
        seconds = duration(lambda: [reference.step(position, choose_from_nucleus) for position in positions])
        result.reference_seconds.append(seconds / len(positions))
        ours, theirs = result.our_seconds["float32"][-1] * 1000, result.reference_seconds[-1] * 1000
        bar.set_postfix_str(f"ours {ours:.1f}, reference's way {theirs:.1f} ms a step")
        bar.update()
    return result


def duration(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def decode(model: Pix2SeqForConditionalGeneration, case: Case, num_tokens: int, **options) -> None:
    """Call `generate`, and see that it wrote everything."""
    output = model.generate(**options)
    assert output.sequences.shape == (case.rows, options["decoder_input_ids"].shape[1] + num_tokens)


def spread_positions(num_tokens: int, count: int) -> list[int]:
    """Middles of `count` equal parts of the positions `0 ... num_tokens - 1`; all positions if there are not more."""
    count = min(count, num_tokens)
    return [int((part + 0.5) * num_tokens / count) for part in range(count)]


def list_goals(results: Iterable[Measurement], speed: MachineSpeed) -> list[Goal]:
    """Every goal of the cases that were measured."""
    goals = []
    for result in results:
        case, work = result.case, result.work
        if case in GOALS:
            exact, rounded = GOALS[case]
            goals.append(Goal(f"{case}, float32: times as fast", exact, statistics.median(result.ratios("float32"))))
            figures = [(statistics.median(result.ratios(way)), way) for way in ROUNDED if way in result.our_seconds]
            if figures:
                best, way = max(figures)
                goals.append(Goal(f"{case}, {way}: times as fast", rounded, best))
        step = statistics.median(result.our_seconds["float32"])
        if case == "detection-1":
            goals.append(Goal(f"{case}: step / byte limit", 1.5, step / work.byte_limit(speed), True))
            pairs = zip(result.encoder_seconds["plain"], result.encoder_seconds["ours"], strict=True)
            ratio = statistics.median(plain / ours for plain, ours in pairs)
            goals.append(Goal("encoder: times as fast as plain PyTorch", 1.0, ratio))
            pairs = zip(result.our_seconds["stock"], result.our_seconds["float32"], strict=True)
            ratio = statistics.median(stock / ours for stock, ours in pairs)
            goals.append(Goal("library's loop / ours", 1.3, ratio, True))
        if case == "masks":
            goals.append(Goal(f"{case}: step / arithmetic limit", 1.8, step / work.arithmetic_limit(speed), True))
    return goals


def goal_table(goals: list[Goal]) -> str:
    """Goals and figures side by side."""
    rows = [["", "goal", "figure", ""]]
    for goal in goals:
        relation = "at most" if goal.is_limit else "at least"
        rows.append([goal.name, f"{relation} {goal.goal:g}", f"{goal.figure:.2f}", "met" if goal.is_met else "MISSED"])
    return markdown_table(rows)


def spread_text(values: list[float], digits: int = 1) -> str:
    """`median (smallest to largest)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def milliseconds(seconds: list[float], divisor: float = 1) -> list[float]:
    return [value * 1000 / divisor for value in seconds]


def speed_table(results: list[Measurement]) -> str:
    """The times of all ways, four lines per case."""
    rows = [["case", "decoded by", "ms per step", "ms per token", "ms per picture", "times as fast"]]
    for result in results:
        ways = [(f"pix2seq_hf, {WAYS[way]}", seconds, spread_text(result.ratios(way)))
                for way, seconds in result.our_seconds.items()]  # fmt: skip
        for way, seconds, times_as_fast in [*ways, ("the reference's way", result.reference_seconds, "1")]:
            rows.append(
                [
                    result.case,
                    way,
                    spread_text(milliseconds(seconds)),
                    f"{statistics.median(milliseconds(seconds, result.rows)):.2f}",
                    spread_text(milliseconds(result.picture_seconds(seconds)), 0),
                    times_as_fast,
                ]
            )
    return markdown_table(rows)


def limit_table(results: list[Measurement], speed: MachineSpeed) -> str:
    """What a step in float32 must read and compute, how long that takes at least, and how near we are."""
    header = ["case", "weights MB", "pictures MB", "output MB", "GFLOP", "limit ms per step", "ours ms", "reached"]
    rows = [[*header, "encoder ms per picture"]]
    for result in results:
        work, ours = result.work, statistics.median(result.our_seconds["float32"])
        is_bytes = work.byte_limit(speed) >= work.arithmetic_limit(speed)
        rows.append(
            [
                result.case,
                *(f"{count / 1e6:.1f}" for count in (work.weight_bytes, work.picture_bytes, work.output_bytes)),
                f"{work.flops / 1e9:.2f}",
                f"{work.limit(speed) * 1000:.2f} ({'bytes' if is_bytes else 'arithmetic'})",
                f"{ours * 1000:.1f}",
                f"{work.limit(speed) / ours:.0%}",
                spread_text(milliseconds(result.encoder_seconds["ours"], result.pictures), 0),
            ]
        )
    return markdown_table(rows)


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of text, the header first, as a table that reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def report(results: list[Measurement], speed: MachineSpeed, machine: Mapping[str, Any]) -> str:
    """Everything as text."""
    first = results[0]
    worst = max(result.logits_difference for result in results)
    tokens = ", ".join(f"{result.case} {result.num_tokens}" for result in results)
    return "\n\n".join(
        [
            f"{describe(machine)}: reads {speed.bytes_per_second / 1e9:.1f} GB/s, multiplies "
            f"{speed.flops_per_second / 1e9:.0f} GFLOP/s in float32.",
            f"Tokens a sequence: {tokens}; {len(first.reference_seconds)} repetitions. Both ways agree: greedy "
            f"tokens equal, logits within {worst:.1g}.",
            speed_table(results),
            limit_table(results, speed),
        ]
    )


def list_gpu_goals(names: Iterable[str], device: torch.device | None) -> tuple[list[GpuGoal], list[dict[str, Any]]]:
    """Goals of cases on a GPU with their figures, and all that was measured; without a device no figures."""
    names = list(names)
    found = measure_gpu(names, lambda: build_model(CASES["detection-1"]), device) if names and device else []
    figures = {each["name"]: {"figure": each["figure"], "limit": each["limit"]} for each in found}
    return [replace(GPU_GOALS[name], **figures.get(name, {})) for name in names], found


def as_json(
    results: list[Measurement],
    speed: MachineSpeed,
    machine: Mapping[str, Any],
    goals: list[Goal],
    on_gpu: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything as data, with the seconds of each repetition."""
    cases = [
        {
            **asdict(result),
            "median_ratios": {way: statistics.median(result.ratios(way)) for way in result.our_seconds},
            "limit_seconds": result.work.limit(speed),
            "reached": result.work.limit(speed) / statistics.median(result.our_seconds["float32"]),
        }
        for result in results
    ]
    return {
        "machine": {**machine, **asdict(speed)},
        "cases": cases,
        "goals": [{**asdict(goal), "is_met": goal.is_met} for goal in goals],
        "gpu": on_gpu,
    }


def positive_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def build_parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:30}{case.describe()}" for name, case in CASES.items())
    names += "".join(f"\n  {name:30}{goal.summary}" for name, goal in GPU_GOALS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"cases:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", action="append", choices=[*CASES, *GPU_GOALS], metavar="NAME", help="a case; may be repeated (all)"
    )
    parser.add_argument("--goals", action="store_true", help="print goals and figures; exit code 1 if one is missed")
    parser.add_argument("--tokens", type=positive_number, help="tokens to write per sequence (by case: 500, 200, 34)")
    parser.add_argument("--repetitions", type=positive_number, default=3, help="how often everything is timed (3)")
    parser.add_argument(
        "--reference-steps", type=positive_number, default=5, help="steps of the reference's way per repetition (5)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    names = args.case or [*CASES, *(GPU_GOALS if args.goals else ())]
    cases = {name: CASES[name] for name in names if name in CASES}
    gpu = torch.device("cuda", 0) if torch.cuda.is_available() else None
    if args.json:
        try:  # now, not after minutes
            open(args.json, "a").close()
        except OSError as error:
            parser.error(f"--json {args.json}: {error.strerror}")
    limit = Pix2SeqConfig().max_position_embeddings - 6  # of a prompt with a box
    if args.tokens and args.tokens > limit:
        parser.error(f"--tokens {args.tokens}: the models have positions for {limit}")

    machine, results = describe_machine(torch.device("cpu")), []
    try:
        with open_bar(len(cases) * (1 + args.repetitions), "part") as bar:
            bar.set_description("bandwidth and matmul rate")
            speed = measure_machine()
            for name, case in cases.items():
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    num_tokens = args.tokens or case.tokens
                    results.append(measure_case(name, case, num_tokens, args.repetitions, args.reference_steps, bar))
                speed = speed.best_of(measure_machine())
        gpu_goals, on_gpu = list_gpu_goals([name for name in names if name in GPU_GOALS], gpu)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    goals = list_goals(results, speed)
    if results:
        print(report(results, speed, machine))
    if args.goals and goals:
        print("\n" + goal_table(goals))
    if gpu_goals:
        print("\n" + markdown_table(gpu_table(gpu_goals)))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(as_json(results, speed, machine, goals, on_gpu), file, indent=2)
    return int(args.goals and not all(goal.is_met for goal in [*goals, *gpu_goals]))


if __name__ == "__main__":
    sys.exit(main())
