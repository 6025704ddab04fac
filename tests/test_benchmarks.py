"""benchmarks/: the same code paths with a tiny model. Nothing here depends on how fast the machine is."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.linear_pix2seq import has_bfloat16

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {
    "image_size": 32,
    "vocab_size": 2100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
    "initializer_range": 0.5,  # so that greedy sequences vary
}


@pytest.fixture(scope="module")
def decode():
    """The module `benchmarks/decode.py`, imported as running the file does."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import decode

        yield decode
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def tiny_cases(decode, monkeypatch):
    """The table of cases with two pictures of a tiny model, and a machine that is measured in no time."""
    cases = {
        "tiny": decode.Case("two pictures", 2, 12, overrides=TINY),
        "other": decode.Case("one object", 1, 12, "instance_segmentation", objects=2, samples=2, overrides=TINY),
    }
    monkeypatch.setattr(decode, "CASES", cases)
    quick = decode.measure_machine
    monkeypatch.setattr(decode, "measure_machine", lambda: quick(num_megabytes=1, matrix_size=16, num_runs=1))
    return cases


@pytest.fixture
def tiny_model(decode):
    torch.manual_seed(0)
    return decode.build_model(decode.Case("", 1, 12, overrides=TINY))


def encode(model, batch):
    with torch.no_grad():
        return model.get_encoder()(torch.rand(batch, 3, 32, 32)).last_hidden_state


class TestReferenceDecoder:
    @pytest.mark.parametrize("num_sequences", [1, 3])
    @pytest.mark.parametrize("prompt_length", [1, 4])
    def test_greedy_tokens_and_logits_are_those_of_generate(self, decode, tiny_model, num_sequences, prompt_length):
        encoded = encode(tiny_model, 2)
        prompts = torch.randint(100, 2100, (2, num_sequences, prompt_length))
        prompts[..., 0] = 10
        output = tiny_model.generate(
            encoder_outputs=BaseModelOutput(encoded),
            decoder_input_ids=prompts,
            do_sample=False,
            max_new_tokens=9,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rows = 2 * num_sequences
        reference = decode.ReferenceDecoder(tiny_model, encoded, rows, prompt_length + 9)
        reference.start(prompts.flatten(0, 1), decode.choose_best)
        for position in range(prompt_length, prompt_length + 8):
            reference.step(position, decode.choose_best)

        assert output.sequences.unique().numel() > 5
        assert torch.equal(reference.tokens.T, output.sequences)
        torch.testing.assert_close(reference.logits[prompt_length:], torch.stack(output.logits), atol=1e-4, rtol=0)

    def test_steps_may_be_taken_at_any_place_of_a_sequence_that_was_read(self, decode, tiny_model):
        encoded = encode(tiny_model, 2)
        tokens = torch.randint(100, 2100, (2, 20))
        reference = decode.ReferenceDecoder(tiny_model, encoded, 2, 21)
        reference.start(tokens, decode.choose_best)
        with torch.no_grad():
            expected = tiny_model(encoder_outputs=BaseModelOutput(encoded), decoder_input_ids=tokens).logits
        for position in (0, 7, 19):
            reference.tokens[:20] = tokens.T
            reference.step(position, decode.choose_best)
            torch.testing.assert_close(reference.logits[position + 1], expected[:, position], atol=1e-4, rtol=0)


class TestCheck:
    def test_equal_ways_pass(self, decode, tiny_model):
        assert 0 <= decode.check_equal(tiny_model, encode(tiny_model, 2), 8, torch.full((2, 1), 10)) <= 1e-4

    @pytest.mark.parametrize(
        "spoil, message",
        [
            (lambda reference, row: reference.logits[row].add_(1e-3), r"logits differ by 0\.001"),
            (lambda reference, row: reference.tokens[row].add_(1), "tokens differ"),
        ],
    )
    def test_different_ways_are_refused(self, decode, tiny_model, monkeypatch, spoil, message):
        step = decode.ReferenceDecoder.step

        def wrong_last_step(self, position, choose):
            step(self, position, choose)
            if position == 7:
                spoil(self, position + 1)

        monkeypatch.setattr(decode.ReferenceDecoder, "step", wrong_last_step)
        with pytest.raises(ValueError, match=message):
            decode.check_equal(tiny_model, encode(tiny_model, 2), 8, torch.full((2, 1), 10))

    @pytest.mark.parametrize("name, message", [("class_labels", "class labels"), ("class_scores", "class scores")])
    def test_different_class_scores_are_refused(self, decode, tiny_model, monkeypatch, name, message):
        generate = tiny_model.generate

        def generate_wrongly(**kwargs):
            output = generate(**kwargs)
            output[name] = output[name] + (1 if name == "class_labels" else 1e-4)
            return output

        monkeypatch.setattr(tiny_model, "generate", generate_wrongly)
        with pytest.raises(ValueError, match=f"{message} differ"):
            decode.check_equal(tiny_model, encode(tiny_model, 2), 8, torch.full((2, 1), 10))


class TestWork:
    def test_released_detector(self, decode):
        """The sums of the README's limit, by hand: ViT-B at 640, 6 decoder layers of 512 and 2048, float32."""
        with torch.device("meta"):
            model = decode.Pix2SeqForConditionalGeneration(decode.Pix2SeqConfig.from_preset("vit-b", vocab_size=35000))
        attention = 4 * (512 * 512 + 512) + 2 * (512 * 512 + 512)  # self; cross without keys and values
        layer = attention + 512 * 2048 + 2048 + 2048 * 512 + 512 + 3 * 2 * 512
        weights = 6 * layer + 2 * 512
        picture = 6 * 2 * 1600 * 512
        output = 7800 * 512  # rows: four times 1,000 bins and once 35,000 words, divided by five
        work = decode.step_work(model, 1600, num_pictures=8, num_rows=16)
        assert work.weight_bytes == 4 * weights
        assert work.picture_bytes == 4 * 8 * picture
        assert work.output_bytes == 4 * output
        assert work.flops == 2 * 16 * (weights + picture + output)

    def test_limit_is_the_slower_of_reading_and_computing(self, decode):
        work = decode.StepWork(weight_bytes=50, picture_bytes=30, output_bytes=20.0, flops=1000.0)
        assert work.limit(decode.MachineSpeed(bytes_per_second=10.0, flops_per_second=1000.0)) == 10.0
        assert work.limit(decode.MachineSpeed(bytes_per_second=1000.0, flops_per_second=10.0)) == 100.0

    def test_best_of_two_measurements(self, decode):
        speed = decode.MachineSpeed(10.0, 20.0).best_of(decode.MachineSpeed(30.0, 5.0))
        assert speed == decode.MachineSpeed(30.0, 20.0)


def test_positions_are_spread_over_the_sequence(decode):
    assert decode.spread_positions(500, 5) == [50, 150, 250, 350, 450]
    assert decode.spread_positions(3, 10) == [0, 1, 2]


def test_table_has_the_cases_that_the_readme_quotes(decode):
    sizes = {name: (case.pictures, case.rows, case.overrides["vocab_size"]) for name, case in decode.CASES.items()}
    assert sizes == {
        "detection-1": (1, 1, 35000),
        "detection-8": (8, 8, 35000),
        "masks": (1, 80, 35000),
        "keypoints": (20, 20, 35000),
    }
    assert decode.GOALS.keys() == decode.CASES.keys()
    assert all(decode.build_parser().parse_args(["--case", name]).case == [name] for name in decode.CASES)


def test_all_cases_are_measured_and_written(decode, tiny_cases, tmp_path, capsys):
    random_state = torch.random.get_rng_state()
    path = tmp_path / "speed.json"
    arguments = ["--tokens", "12", "--repetitions", "2", "--reference-steps", "3", "--json", str(path)]
    assert decode.main(arguments) == 0

    written = json.loads(path.read_text())
    has_int8 = "fbgemm" in torch.backends.quantized.supported_engines
    rounded = ["bfloat16"] * has_bfloat16() + ["int8"] * has_int8
    assert [case["case"] for case in written["cases"]] == ["tiny", "other"]
    tiny = written["cases"][0]
    assert (tiny["pictures"], tiny["rows"], tiny["num_tokens"]) == (2, 2, 12)
    assert [written["cases"][1][name] for name in ("pictures", "rows")] == [1, 4]
    for seconds in (*tiny["encoder_seconds"].values(), *tiny["our_seconds"].values(), tiny["reference_seconds"]):
        assert len(seconds) == 2 and min(seconds) > 0
    assert (
        tiny["median_ratios"].keys() == {"float32", "stock", *rounded}
        and 0 < tiny["limit_seconds"]
        and tiny["logits_difference"] <= 1e-4
    )
    assert written["machine"]["bytes_per_second"] > 0 and written["machine"]["threads"] == torch.get_num_threads()

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines]
    count = len(tiny["median_ratios"]) + 1  # lines of a case: our ways and the reference's
    end = 2 + 2 * count
    assert names[:1] + names[2:end] == ["case"] + ["tiny"] * count + ["other"] * count
    assert names[end : end + 1] + names[end + 2 :] == ["case", "tiny", "other"]  # limits
    assert len({len(line) for line in lines[:end]}) == 1  # a table in plain text too
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_one_case(decode, tiny_cases, capsys):
    assert decode.main(["--case", "other", "--tokens", "1", "--repetitions", "1"]) == 0
    out = capsys.readouterr().out
    assert "other" in out and "tiny" not in out


def test_result_is_computed_per_step_token_and_picture(decode):
    result = decode.Measurement("tiny", 8, 8, 500, 0.0, decode.StepWork(8, 8, 8.0, 8.0))
    result.encoder_seconds, result.reference_seconds = {"ours": [8.0, 16.0]}, [0.16, 0.16]
    result.our_seconds = {"float32": [0.016, 0.04]}
    assert result.ratios() == [10.0, 4.0]
    assert result.picture_seconds(result.our_seconds["float32"]) == [2.0, 4.5]
    ours = decode.speed_table([result]).splitlines()[2].split("|")
    assert [cell.strip() for cell in ours[3:7]] == [
        "28.0 (16.0 to 40.0)",
        "3.50",
        "3,250 (2,000 to 4,500)",
        "7.0 (4.0 to 10.0)",
    ]


def test_goals_stand_beside_their_figures(decode, capsys):
    work = decode.StepWork(60, 30, 10.0, 1000.0)
    result = decode.Measurement("detection-1", 1, 1, 500, 0.0, work)
    result.encoder_seconds, result.reference_seconds = {"ours": [1.0], "plain": [1.5]}, [11.0]
    result.our_seconds = {"float32": [1.0], "bfloat16": [0.6], "stock": [1.4]}
    goals = decode.list_goals([result], decode.MachineSpeed(80.0, 1e9))
    assert [(goal.goal, round(goal.figure, 2), goal.is_met) for goal in goals] == [
        (10, 11.0, True),
        (20, 18.33, False),
        (1.5, 0.8, True),
        (1.0, 1.5, True),
        (1.3, 1.4, False),
    ]
    table = decode.goal_table(goals).splitlines()
    assert [line.split("|")[-2].strip() for line in table[2:]] == ["met", "MISSED", "met", "met", "MISSED"]


def test_a_missed_goal_is_an_exit_code(decode, tiny_cases, monkeypatch, capsys):
    arguments = ["--case", "tiny", "--tokens", "2", "--repetitions", "1", "--goals"]
    monkeypatch.setattr(decode, "GOALS", {"tiny": (0, 0)})
    assert decode.main(arguments) == 0
    monkeypatch.setattr(decode, "GOALS", {"tiny": (0, 1e9)})
    assert decode.main(arguments) == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.fixture
def on_processor(decode, monkeypatch):
    """What is measured on a GPU, tiny and on a processor."""
    from pix2seq_hf import decoding_pix2seq_static

    module = sys.modules[decode.measure_gpu.__module__]
    quick, device = module.measure_device, torch.device("cpu")
    monkeypatch.setattr(module, "measure_device", lambda device: quick(device, num_megabytes=1, matrix_size=16))
    for name, value in (("NUM_WARM_UPS", 1), ("NUM_REPETITIONS", 1), ("TRAINING_PICTURES", 2)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.delitem(module.WAYS, "compiled")  # takes long
    monkeypatch.setattr(decoding_pix2seq_static, "STATIC_DEVICES", {"cpu"})
    case = decode.Case("", 1, 25, overrides={**TINY, "max_instances_per_image": 5})
    monkeypatch.setattr(decode, "CASES", {"detection-1": case})
    return device


def test_goals_of_a_gpu(decode, on_processor):
    goals, found = decode.list_gpu_goals(decode.GPU_GOALS, on_processor)
    assert [goal.name for goal in goals] == list(decode.GPU_GOALS) == [each["name"] for each in found]
    assert all(goal.figure > 0 and goal.limit > 0 for goal in goals)
    assert min(found[0]["seconds"]["step"][way] for way in ("graphs", "loop")) * 1000 == goals[0].figure
    one = decode.replace(goals[0], figure=0.2, limit=0.05)
    rows = decode.gpu_table([one, decode.replace(goals[1], figure=80.0, limit=160.0)])
    assert [row[2:] for row in rows[1:]] == [["0.2", "0.05", "25%", "met"], ["80", "160", "50%", "MISSED"]]


def test_repeated_steps_that_disagree_are_refused(decode, on_processor, monkeypatch):
    from pix2seq_hf.decoding_pix2seq_static import StaticDecoder

    accept = StaticDecoder.accept
    monkeypatch.setattr(StaticDecoder, "accept", lambda self, states, step: accept(self, -states, step))
    with pytest.raises(ValueError, match="tokens differ"):
        decode.list_gpu_goals(["gpu-detection-1"], on_processor)


def test_steps_that_are_not_repeated_are_refused(decode, on_processor, monkeypatch):
    monkeypatch.setattr("pix2seq_hf.decoding_pix2seq_static.STATIC_DEVICES", set())
    with pytest.raises(ValueError, match="no step of decoding was captured"):
        decode.list_gpu_goals(["gpu-detection-1"], on_processor)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_goals_are_named(decode, tiny_cases, capsys):
    assert decode.main(["--case", "gpu-training", "--goals"]) == 0
    assert "not measured here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", "507"], "--tokens 507: the models have positions for 506"),
        (["--tokens", "0"], "must be at least 1, got 0"),
        (["--case", "unknown"], "detection-1"),
        (["--json", "missing-folder/speed.json"], "missing-folder/speed.json: No such file"),
    ],
)
def test_wrong_options_end_with_a_line(decode, capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        decode.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_disagreement_ends_with_a_line(decode, tiny_cases, monkeypatch, capsys):
    monkeypatch.setattr(decode, "LOGITS_TOLERANCE", -1.0)
    assert decode.main(["--case", "tiny", "--tokens", "2", "--repetitions", "1"]) == 1
    assert "the two ways of decoding disagree" in capsys.readouterr().err


@pytest.fixture(scope="module")
def data():
    """The module `benchmarks/data.py`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import data

        yield data
    finally:
        sys.path.remove(str(BENCHMARKS))
        del sys.modules["data"]


def test_rates_of_the_input_pipeline(data, tmp_path, capsys):
    write_shapes(tmp_path, "train", 5, seed=0, image_size=(48, 64))
    options = ["--split", "train", "--image-size", "32", "--batch-size", "2", "--pictures", "8", "--rounds", "1"]
    data.main([str(tmp_path), *options, "--workers", "0", "2", "--step-ms", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 pictures, detection at 32, batches of 2")
    rows = {line[:44].strip(): [float(word) for word in line[44:].split()] for line in lines[2:7]}
    assert list(rows) == [
        "decoding alone, Pillow",
        "decoding alone, load_pixels",
        "decoding alone, load_pixels, 2 processes",
        "pipeline, 0 workers",
        "pipeline, 2 workers",
    ]
    assert all(len(numbers) == 3 and numbers[0] > 0 for numbers in rows.values())
    assert "2 workers take" in lines[7] and "stated 450/s" in lines[7]
    assert lines[8].startswith("a step of 1 ms takes 2000 pictures/s at most; share of waiting: ")


def test_rates_are_the_best_of_all_rounds(data):
    slow, fast = data.Rate(10.0, 0.3), data.Rate(8.0, 0.2)
    assert slow.best_of(fast) == data.Rate(10.0, 0.2) and slow.best_of(None) == slow
