"""Pictures and annotations in, tensors out, and generated sequences back to boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import pix2seq_hf
from pix2seq_hf import TASKS, Pix2SeqImageProcessor, Pix2SeqProcessor
from tiny_model import NAMES, noise_picture, tiny_config, tiny_detector

NO_CORRUPTION = {"class_label_corruption": "none"}


@pytest.fixture
def processor():
    return Pix2SeqProcessor.from_config(tiny_config())


def annotation(*objects, image_id=1):
    entries = [{"bbox": box, "category_id": label} for box, label in objects]
    return {"image_id": image_id, "annotations": entries}


def caption_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_prompts(processor):
    images = [noise_picture(), noise_picture(20, 90)]
    inputs = processor(images=images, task="object_detection", return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 32, 48)
    assert inputs["decoder_input_ids"].tolist() == [[10], [10]]
    assert inputs["task"] == "object_detection"
    assert set(inputs) == {"pixel_values", "decoder_input_ids", "task"} == set(processor.model_input_names)
    single = processor(images[0], return_tensors="np")
    assert single["decoder_input_ids"].tolist() == [[10]]
    assert np.array_equal(single["pixel_values"][0], inputs["pixel_values"][0])
    assert isinstance(processor(images)["pixel_values"], list)


def test_options_reach_the_image_processor(processor):
    image = noise_picture()
    size = {"height": 64, "width": 64}
    flat = processor(images=image, size=size, padding_value=0.5, return_tensors="pt")["pixel_values"]
    nested = processor(images=image, images_kwargs={"size": size, "padding_value": 0.5, "return_tensors": "pt"})
    expected = processor.image_processor(image, size=size, padding_value=0.5, return_tensors="pt")["pixel_values"]
    assert torch.equal(flat, expected) and torch.equal(nested["pixel_values"], expected)


def test_training_sequences(processor):
    # 40 x 50 becomes 32 x 40 inside 32 x 48: y is a share of 40 / 40 * 32 / 32, x of 50 pixels times 40 / 48.
    image = noise_picture(40, 50)
    given = annotation(([5, 10, 24, 20], 18), ([0, 0, 50, 40], 1))
    batch = processor(
        images=image, annotations=given, task="object_detection", task_options=NO_CORRUPTION, return_tensors="pt"
    )
    assert {name: tuple(batch[name].shape) for name in batch} == {
        "pixel_values": (1, 3, 32, 48),
        "decoder_input_ids": (1, 20),
        "labels": (1, 20),
        "label_weights": (1, 20),
    }
    x, y = round(5 / 50 * 40 / 48 * 999), round(10 / 40 * 999)
    right, bottom = round(29 / 50 * 40 / 48 * 999), round(30 / 40 * 999)
    first = [1000 + y, 1000 + x, 1000 + bottom, 1000 + right, 118]
    second = [1000, 1000, 1999, 1000 + round(40 / 48 * 999), 101]
    assert batch["labels"][0].tolist() == first + second + [0] * 10
    assert batch["decoder_input_ids"][0].tolist() == [10] + first + second + [0] * 9
    assert batch["label_weights"][0].tolist() == pytest.approx([1.0] * 10 + [0.1] * 10)


def test_training_batch_feeds_the_model(processor):
    images = [noise_picture(40, 50), noise_picture(60, 30), noise_picture(8, 8)]
    given = [annotation(([1, 1, 9, 9], 1)), annotation(), annotation(*[([0, 0, 4, 4], 90)] * 6)]
    batch = processor(images=images, annotations=given, rng=np.random.default_rng(0), return_tensors="pt")
    assert batch["labels"].shape == (3, 20)
    assert (batch["labels"][1] == 0).all() and (batch["labels"][2] != 0).all()  # six objects are cut to four
    output = tiny_detector()(**batch)
    assert torch.isfinite(output.loss)


def test_randomness_is_an_argument(processor):
    given = annotation(*[([0, 0, 9, 9], 18)] * 4)

    def inputs(**options):
        return processor(images=noise_picture(), annotations=given, return_tensors="pt", **options)["decoder_input_ids"]

    first, again, other = (inputs(rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    first, other = inputs(), inputs()
    torch.manual_seed(3)
    assert torch.equal(first, inputs()) and not torch.equal(first, other)


def test_crowds_and_flat_boxes_are_left_out(processor):
    given = annotation(([0, 0, 9, 9], 1), ([0, 0, 9, 0], 18), ([3, 3, -1, 4], 18))
    given["annotations"].append({"bbox": [0, 0, 9, 9], "category_id": 90, "iscrowd": 1, "area": 81, "id": 5})
    batch = processor(images=noise_picture(), annotations=given, task_options=NO_CORRUPTION, return_tensors="pt")
    assert batch["labels"][0, 4::5].tolist() == [101, 0, 0, 0]


def test_annotations_of_turned_pictures(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_picture(50, 40).save(tmp_path / "turned.jpg", exif=exif)  # upright it is 40 x 50
    given = annotation(([5, 10, 25, 20], 18))
    options = {"annotations": given, "task_options": NO_CORRUPTION, "return_tensors": "pt"}
    expected = processor(images=noise_picture(40, 50), **options)["labels"]
    for image in (str(tmp_path / "turned.jpg"), Image.open(tmp_path / "turned.jpg")):
        assert torch.equal(processor(images=image, **options)["labels"], expected)


def test_without_resizing(processor):
    given = annotation(([0, 0, 24, 16], 1))
    image = np.zeros((16, 24, 3), dtype=np.uint8)  # fills a quarter of the input
    options = {"task_options": NO_CORRUPTION, "return_tensors": "pt"}
    labels = processor(images=image, annotations=given, do_resize=False, **options)["labels"]
    assert labels[0, :5].tolist() == [1000, 1000, 1500, 1500, 101]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "counting"}, "unknown task 'counting': known are object_detection"),
        ({"images": None}, "images="),
        ({"annotations": [annotation()] * 2}, "2 annotations were given for 1 pictures"),
        ({"annotations": [[]]}, r"annotations\[0\] must be a dict"),
        ({"annotations": {"image_id": 3}}, "without annotations"),
        ({"annotations": {"image_id": 3, "annotations": [{"bbox": [0, 0, 1, 1]}]}}, r"image 3\), object 0"),
        ({"annotations": annotation(([0, 0, 1, 1], 1), ([0, 0, 1], 1))}, "object 1: bbox must be four finite"),
        ({"annotations": annotation(([0, 0, 1, float("nan")], 1))}, "finite"),
        ({"annotations": annotation(([0, 0, 1, 1], 0))}, "category_id 0 .* from 1 to 899"),
        ({"annotations": annotation(([0, 0, 1, 1], 900))}, "category_id 900"),
    ],
)
def test_mistakes_get_a_clear_line(processor, wrong, message):
    arguments = {"images": noise_picture(), "return_tensors": "pt", **wrong}
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_impossible_vocabularies():
    with pytest.raises(ValueError, match="quantization_bins 2500"):
        Pix2SeqProcessor(quantization_bins=2500)
    with pytest.raises(ValueError, match="900 classes"):
        Pix2SeqProcessor(id2label={label: f"class {label}" for label in range(1, 901)})


def tokens_of(*objects):
    return [token for box, label in objects for token in (*(1000 + bin for bin in box), 100 + label)]


def test_from_sequences_to_pixels(processor):
    # A picture of 40 x 50 fills 32 x 40 of 32 x 48 pixels: x is a share of 48 / 40 * 50 = 60 pixels.
    tokens = tokens_of(([0, 0, 999, 999], 18), ([333, 333, 666, 666], 0)) + [0] * 10
    sequences = torch.tensor([[10, *tokens]])
    (result,) = processor.post_process_generation(sequences, task="object_detection", target_sizes=[(40, 50)])
    assert {name: result[name].tolist() for name in ("labels", "scores")} == {"labels": [18], "scores": [1.0]}
    assert result["boxes"].tolist() == [pytest.approx([0, 0, 60, 40], abs=1e-4)]
    (stripped,) = processor.post_process_generation(sequences[:, 1:], target_sizes=torch.tensor([[40, 50]]))
    assert torch.equal(stripped["boxes"], result["boxes"])
    (relative,) = processor.post_process_generation(sequences)
    assert relative["boxes"].tolist() == [[0, 0, 1, 1]]


def test_recorded_classes_win_over_sampled_ones(processor):
    sequences = torch.tensor([[10, *tokens_of(([0, 0, 999, 999], 18), ([0, 0, 999, 999], 18))]])
    output = {
        "sequences": sequences,
        "class_labels": torch.tensor([[90, 0]]),
        "class_scores": torch.tensor([[0.25, 0.75]]),
    }
    (result,) = processor.post_process_generation(output, target_sizes=[(40, 50)])
    assert result["labels"].tolist() == [90] and result["scores"].tolist() == [0.25]
    (result,) = processor.post_process_generation(output, target_sizes=[(40, 50)], threshold=0.5)
    assert result["boxes"].shape == (0, 4) and result["labels"].shape == result["scores"].shape == (0,)


def test_malformed_sequences_are_counted_not_raised(processor):
    rng = np.random.default_rng(0)
    sequences = torch.from_numpy(rng.integers(-5, 3100, (8, 23)))
    sequences[:, 0] = 10
    results = processor.post_process_generation(sequences, target_sizes=[(40, 50)] * 8)
    assert sum(sum(result["malformed"].values()) for result in results) > 8
    for result in results:
        assert len(result["boxes"]) == len(result["labels"]) == len(result["scores"])
        assert torch.isfinite(result["boxes"]).all()
    for length in (0, 1, 3):
        (result,) = processor.post_process_generation(sequences[:1, :length], target_sizes=[(40, 50)])
        assert result["boxes"].shape == (0, 4)


def test_several_sequences_per_picture(processor):
    sequences = torch.tensor([[10, *tokens_of(([0, 0, 999, 999], 1))]] * 4)
    results = processor.post_process_generation(sequences, target_sizes=[(32, 48), (64, 96)])
    assert [result["boxes"][0, 3].item() for result in results] == [32, 32, 64, 64]
    with pytest.raises(ValueError, match="3 target_sizes were given for 4 sequences"):
        processor.post_process_generation(sequences, target_sizes=[(32, 48)] * 3)
    with pytest.raises(ValueError, match="unknown task"):
        processor.post_process_generation(sequences, task="counting")


def test_generation_round_trip(processor):
    model = tiny_detector(favourite_label=18)
    images = [noise_picture(), noise_picture(90, 20)]
    inputs = processor(images=images, return_tensors="pt")
    output = model.generate(**inputs)
    results = processor.post_process_generation(output, target_sizes=[(40, 50), (90, 20)], threshold=0.5)
    assert [result["labels"].tolist() for result in results] == [[18] * 4] * 2
    assert (results[0]["scores"] > 0.5).all()


def test_tasks_are_named_as_listed():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert len({task.prompt_id for task in TASKS.values()}) == len(TASKS)


def test_every_task_file_has_its_line():
    on_disk = {path.stem for path in Path(pix2seq_hf.__file__).parent.glob("task_*.py")} - {"task_base"}
    assert on_disk == {f"task_{name}" for name in TASKS}
    for name, task in TASKS.items():
        assert type(task).__module__ == f"pix2seq_hf.task_{name}"


@pytest.mark.parametrize("tokenizer", [None, caption_tokenizer()], ids=["plain", "with captions"])
def test_save_and_load(tmp_path, tokenizer):
    config = tiny_config(quantization_bins=500, max_instances_per_image=7)
    processor = Pix2SeqProcessor.from_config(config, caption_tokenizer=tokenizer)
    processor.save_pretrained(tmp_path)
    again = Pix2SeqProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.vocabulary == processor.vocabulary and again.vocabulary.quantization_bins == 500
    assert again.id2label == NAMES and again.max_instances_per_image == 7
    assert dict(again.image_processor.size) == {"height": 32, "width": 48}
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    if tokenizer is None:
        assert again.caption_tokenizer is None
        assert files == ["processor_config.json"]
    else:
        assert again.caption_tokenizer("a dog")["input_ids"] == [3, 4]
        # A tokenizer.json at the root would make the detection pipeline take this for a LayoutLM.
        assert set(files) == {
            "processor_config.json",
            "caption_tokenizer/tokenizer.json",
            "caption_tokenizer/tokenizer_config.json",
        }
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert "caption_tokenizer" not in saved and saved["processor_class"] == "Pix2SeqProcessor"


def test_sub_processors_are_checked():
    with pytest.raises(TypeError):
        Pix2SeqProcessor(image_processor="resize")
    with pytest.raises(TypeError):
        Pix2SeqProcessor(Pix2SeqImageProcessor(), caption_tokenizer=Pix2SeqImageProcessor())
