"""How fast is decoding: `generate`, the reference's way of decoding the same model, and the limit of the machine.

examples:
  python benchmarks/decode.py                                  # all cases, about five minutes on two cores
  python benchmarks/decode.py --case detection-1 --json speed.json
  python benchmarks/decode.py --case detection-1 --case detection-8 --tokens 100 --repetitions 5

Weights are random: speed does not depend on them. Before anything is timed, both ways must give the same greedy
tokens, the same logits to 1e-4 and the same class scores to 1e-5. Then a repetition times, one after the other,
  the encoder, once;
  `generate(encoder_outputs=...)` as a user calls it: task settings of detection (sampling, top_p 0.4), class scores
    recorded, all tokens;
  the reference's way, also sampling with top_p 0.4: a few steps, spread evenly over the sequence. The cost of a step
    grows linearly with the tokens before it, so their mean is the mean over the sequence. What the reference does
    after the last step, class scores from the logits it kept, is not counted.
Times are medians over the repetitions (smallest to largest in brackets), ratios are taken within each repetition. A
step writes one token of every sequence; a token's time is the step's divided by the batch; a picture's is its part of
encoder and steps. The number of threads is torch's own choice: set OMP_NUM_THREADS to change it."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutput

import pix2seq_hf
from machine_limits import MachineSpeed, StepWork, measure_machine, step_work
from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.generation_pix2seq import build_generation_config, top_logits
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.tokenization_pix2seq import class_labels_and_scores
from reference_decoding import ReferenceDecoder

NUM_CHECKED_TOKENS = 12
LOGITS_TOLERANCE = 1e-4
SCORES_TOLERANCE = 1e-5
TOKENS_PER_OBJECT = 5
TOP_P = 0.4  # the reference's for detection


@dataclass(frozen=True)
class Case:
    """One line of the tables: a model (a preset and the fields that differ from it) and a number of pictures."""

    summary: str
    batch: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "vit-b"

    def describe(self) -> str:
        """The case as one line."""
        return "; ".join([self.summary, self.preset, *(f"{key} {value}" for key, value in self.overrides.items())])


# 35,000 words is the vocabulary of the multi-task checkpoints, 3,000 that of the detectors.
CASES = {
    "detection-1": Case("one picture", 1, {"vocab_size": 35000}),
    "detection-8": Case("eight pictures at once", 8, {"vocab_size": 35000}),
    "detection-1-small-vocabulary": Case("one picture", 1, {"vocab_size": 3000}),
    "detection-8-small-vocabulary": Case("eight pictures at once", 8, {"vocab_size": 3000}),
}


@dataclass
class Measurement:
    r"""What was measured for a case.

    Args:
        case (`str`): Its name in `CASES`.
        batch (`int`): Pictures, one sequence each.
        num_tokens (`int`): Tokens written per picture.
        logits_difference (`float`): Largest difference of the logits of the two ways.
        encoder_seconds (`list[float]`): Per repetition, the whole batch.
        our_seconds (`list[float]`): Per repetition, the mean step of `generate`.
        reference_seconds (`list[float]`): Per repetition, the mean of the reference's steps.
        work (`StepWork`): What no step can avoid."""

    case: str
    batch: int
    num_tokens: int
    logits_difference: float
    work: StepWork
    encoder_seconds: list[float] = field(default_factory=list)
    our_seconds: list[float] = field(default_factory=list)
    reference_seconds: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times faster our steps are, per repetition."""
        return [reference / ours for ours, reference in zip(self.our_seconds, self.reference_seconds, strict=True)]

    def picture_seconds(self, step_seconds: list[float]) -> list[float]:
        """Encoder and all steps, per picture and repetition."""
        pairs = zip(self.encoder_seconds, step_seconds, strict=True)
        return [(encoder + step * self.num_tokens) / self.batch for encoder, step in pairs]


def build_model(case: Case) -> Pix2SeqForConditionalGeneration:
    """The model of a case with random weights, ready for `generate`."""
    config = Pix2SeqConfig.from_preset(case.preset, **case.overrides)
    model = Pix2SeqForConditionalGeneration(config).eval()
    model.generation_config = build_generation_config(config)
    return model


def choose_best(logits: torch.Tensor) -> torch.Tensor:
    """Greedy choice."""
    return logits.argmax(-1)


def choose_from_nucleus(logits: torch.Tensor) -> torch.Tensor:
    """The reference's choice for detection: sample from the nucleus."""
    return top_logits(logits, p=TOP_P).softmax(-1).multinomial(1)[:, 0]


def check_equal(model: Pix2SeqForConditionalGeneration, encoded: torch.Tensor, num_tokens: int) -> float:
    r"""Decode greedily both ways and compare.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): The model.
        encoded (`torch.FloatTensor` of shape `(batch, num_tokens, decoder_hidden_size)`): Pictures.
        num_tokens (`int`): Tokens to write.
    Returns:
        `float`: The largest difference of the logits.
    Raises:
        ValueError: If tokens or labels differ, logits by more than 1e-4 or scores by more than 1e-5."""
    greedy = {"do_sample": False, "max_new_tokens": num_tokens}
    with_logits = model.generate(encoder_outputs=BaseModelOutput(encoded), output_logits=True, **greedy)
    plain = model.generate(encoder_outputs=BaseModelOutput(encoded), **greedy)  # asks for nothing, like what is timed
    reference = ReferenceDecoder(model, encoded, encoded.shape[0], num_tokens + 1)
    reference.start(plain.sequences[:, :1], choose_best)
    for position in range(1, num_tokens):
        reference.step(position, choose_best)
    labels, scores = class_labels_and_scores(
        reference.logits[TOKENS_PER_OBJECT::TOKENS_PER_OBJECT].transpose(0, 1),  # (batch, num_objects, vocab_size)
        model.config.base_vocab_shift,
        model.config.coord_vocab_shift,
    )

    difference = (torch.stack(with_logits.logits) - reference.logits[1:]).abs().max().item()
    if not difference <= LOGITS_TOLERANCE:
        raise ValueError(f"the two ways of decoding disagree: logits differ by {difference:.3g}, so times say nothing")
    for name, ours, expected in (
        ("tokens", with_logits.sequences, reference.tokens.T),
        ("tokens", plain.sequences, reference.tokens.T),
        ("class labels", plain.class_labels, labels),
    ):
        if not torch.equal(ours, expected):
            raise ValueError(f"the two ways of decoding disagree: {name} differ, so times say nothing")
    if not torch.allclose(plain.class_scores, scores, rtol=0, atol=SCORES_TOLERANCE):
        raise ValueError("the two ways of decoding disagree: class scores differ, so times say nothing")
    return difference


@torch.no_grad()
def measure_case(name: str, case: Case, num_tokens: int, num_repetitions: int, num_reference_steps: int, bar):
    r"""Check and time a case.

    Args:
        name (`str`), case ([`Case`]): An item of `CASES`.
        num_tokens (`int`): Tokens to write per picture.
        num_repetitions (`int`): How often everything is timed.
        num_reference_steps (`int`): Steps of the reference's way in a repetition.
        bar (`tqdm`): Advances by one per repetition and one for the check.
    Returns:
        [`Measurement`]."""
    bar.set_postfix_str("")
    bar.set_description(f"{name}: check")
    model = build_model(case)
    pixel_values = torch.rand(case.batch, model.config.num_channels, *model.config.image_size)
    encoded = model.get_encoder()(pixel_values).last_hidden_state
    result = Measurement(
        case=name,
        batch=case.batch,
        num_tokens=num_tokens,
        logits_difference=check_equal(model, encoded, min(num_tokens, NUM_CHECKED_TOKENS)),
        work=step_work(model, encoded.shape[1], case.batch, case.batch),
    )
    bar.update()

    # The sequence that the reference's steps continue at any place: its layer inputs are computed in one pass.
    sequence = torch.randint(model.config.vocab_size, (case.batch, num_tokens))
    sequence[:, 0] = model.config.decoder_start_token_id
    reference = ReferenceDecoder(model, encoded, case.batch, num_tokens + 1)
    reference.start(sequence, choose_from_nucleus)
    positions = spread_positions(num_tokens, num_reference_steps)

    for repetition in range(num_repetitions):
        place = f"{name} {repetition + 1}/{num_repetitions}"
        bar.set_description(f"{place}: encoder")
        start = time.perf_counter()
        model.get_encoder()(pixel_values)
        result.encoder_seconds.append(time.perf_counter() - start)

        bar.set_description(f"{place}: generate")
        start = time.perf_counter()
        output = model.generate(encoder_outputs=BaseModelOutput(encoded), max_new_tokens=num_tokens)
        result.our_seconds.append((time.perf_counter() - start) / num_tokens)
        assert output.sequences.shape == (case.batch, num_tokens + 1)
        assert output.class_scores.shape == (case.batch, num_tokens // TOKENS_PER_OBJECT)
        del output

        bar.set_description(f"{place}: reference's way")
        start = time.perf_counter()
        for position in positions:
            reference.step(position, choose_from_nucleus)
        result.reference_seconds.append((time.perf_counter() - start) / len(positions))
        ours, theirs = (seconds[-1] * 1000 for seconds in (result.our_seconds, result.reference_seconds))
        bar.set_postfix_str(f"ours {ours:.1f}, reference's way {theirs:.1f} ms a step")
        bar.update()
    return result


def spread_positions(num_tokens: int, count: int) -> list[int]:
    """Middles of `count` equal parts of the positions `0 ... num_tokens - 1`; all positions if there are not more."""
    count = min(count, num_tokens)
    return [int((part + 0.5) * num_tokens / count) for part in range(count)]


def spread_text(values: list[float], digits: int = 1) -> str:
    """`median (smallest to largest)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def milliseconds(seconds: list[float], divisor: float = 1) -> list[float]:
    return [value * 1000 / divisor for value in seconds]


def speed_table(results: list[Measurement]) -> str:
    """The times of both ways, two lines per case."""
    rows = [["case", "decoded by", "ms per step", "ms per token", "ms per picture", "times as fast"]]
    for result in results:
        ways = [
            ("pix2seq_hf", result.our_seconds, spread_text(result.ratios)),
            ("the reference's way", result.reference_seconds, "1"),
        ]
        for way, seconds, times_as_fast in ways:
            rows.append(
                [
                    result.case,
                    way,
                    spread_text(milliseconds(seconds)),
                    f"{statistics.median(milliseconds(seconds, result.batch)):.1f}",
                    spread_text(milliseconds(result.picture_seconds(seconds)), 0),
                    times_as_fast,
                ]
            )
    return markdown_table(rows)


def limit_table(results: list[Measurement], speed: MachineSpeed) -> str:
    """What a step must read and compute, how long that takes at least, and how near we are."""
    header = ["case", "weights MB", "pictures MB", "output MB", "GFLOP", "limit ms per step", "ours ms", "reached"]
    rows = [[*header, "encoder ms per picture"]]
    for result in results:
        work, ours = result.work, statistics.median(result.our_seconds)
        is_bytes = work.byte_limit(speed) >= work.arithmetic_limit(speed)
        rows.append(
            [
                result.case,
                *(f"{count / 1e6:.1f}" for count in (work.weight_bytes, work.picture_bytes, work.output_bytes)),
                f"{work.flops / 1e9:.2f}",
                f"{work.limit(speed) * 1000:.2f} ({'bytes' if is_bytes else 'arithmetic'})",
                f"{ours * 1000:.1f}",
                f"{work.limit(speed) / ours:.0%}",
                spread_text(milliseconds(result.encoder_seconds, result.batch), 0),
            ]
        )
    return markdown_table(rows)


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of text, the header first, as a table that reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def describe_machine() -> dict[str, Any]:
    """What times depend on besides the code."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pix2seq_hf": pix2seq_hf.__version__,
    }


def processor_name() -> str:
    """The model name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def report(results: list[Measurement], speed: MachineSpeed, machine: Mapping[str, Any]) -> str:
    """Everything as text."""
    first = results[0]
    worst = max(result.logits_difference for result in results)
    return "\n\n".join(
        [
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, transformers "
            f"{machine['transformers']}, float32: reads {speed.bytes_per_second / 1e9:.1f} GB/s, multiplies "
            f"{speed.flops_per_second / 1e9:.0f} GFLOP/s.",
            f"{first.num_tokens} tokens a picture, {len(first.our_seconds)} repetitions. Both ways agree: greedy "
            f"tokens equal, logits within {worst:.1g}.",
            speed_table(results),
            limit_table(results, speed),
        ]
    )


def as_json(results: list[Measurement], speed: MachineSpeed, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as data, with the seconds of each repetition."""
    cases = [
        {
            **asdict(result),
            "median_ratio": statistics.median(result.ratios),
            "limit_seconds": result.work.limit(speed),
            "reached": result.work.limit(speed) / statistics.median(result.our_seconds),
        }
        for result in results
    ]
    return {"machine": {**machine, **asdict(speed)}, "cases": cases}


def positive_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def build_parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:30}{case.describe()}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"cases:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME", help="a case; may be repeated (all)")
    parser.add_argument("--tokens", type=positive_number, default=500, help="tokens to write per picture (500)")
    parser.add_argument("--repetitions", type=positive_number, default=3, help="how often everything is timed (3)")
    parser.add_argument(
        "--reference-steps", type=positive_number, default=10, help="steps of the reference's way per repetition (10)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    cases = {name: CASES[name] for name in args.case or CASES}
    if args.json:
        try:  # now, not after minutes
            open(args.json, "a").close()
        except OSError as error:
            parser.error(f"--json {args.json}: {error.strerror}")
    limit = Pix2SeqConfig().max_position_embeddings - 1
    if args.tokens > limit:
        parser.error(f"--tokens {args.tokens}: the models have positions for {limit}")

    machine, results = describe_machine(), []
    try:
        with tqdm(total=len(cases) * (1 + args.repetitions), unit="part", dynamic_ncols=True) as bar:
            bar.set_description("bandwidth and matmul rate")
            speed = measure_machine()
            for name, case in cases.items():
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    results.append(measure_case(name, case, args.tokens, args.repetitions, args.reference_steps, bar))
                speed = speed.best_of(measure_machine())
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(report(results, speed, machine))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(as_json(results, speed, machine), file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
