"""Quantisation, detection sequences and their decoding against the reference recordings."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf.task_base import resize_to
from pix2seq_hf.task_object_detection import (
    CorruptionDraws,
    ObjectDetection,
    build_targets,
    coco_results,
    corrupt_class_tokens,
    object_tokens,
    object_weights,
    rescale_boxes,
)
from pix2seq_hf.tokenization_pix2seq import (
    FAKE_CLASS_TOKEN,
    RESERVED,
    Pix2SeqVocabulary,
    class_labels_and_scores,
    dequantize,
    offset_points,
    preserve_reserved,
    quantize,
    reserved_to_floats,
    reserved_to_tokens,
    scale_points,
    swap_yx,
)

SERIALIZATION_CASES = [
    "default", "truncated", "zero_objects", "noise_weight_1.0", "noise_weight_0.0", "noise_weight_0.5",
    "corruption_rand_cls", "corruption_real_n_fake_cls", "corruption_rand_n_fake_cls",
    "corruption_real_n_rand_n_fake_cls", "long_max_seq_len", "edge_boxes", "bins_500", "bins_2000_eos_0.3",
]  # fmt: skip
DECODING_CASES = ["regular", "class_from_logits", "odd_length", "malformed", "bins_500"]
DRAWS = ("draw_rand_cls_int", "draw_u_rand_n_fake", "draw_u_real_n_fake", "draw_u_real_n_rand_n_fake")


@pytest.fixture(scope="module")
def quantization(golden_dir):
    return load(golden_dir, "quantize")


@pytest.fixture(scope="module")
def serialization(golden_dir):
    return load(golden_dir, "serialization_object_detection")


@pytest.fixture(scope="module")
def decoding(golden_dir):
    return load(golden_dir, "decoding_object_detection")


def load(golden_dir, name):
    with np.load(golden_dir / "tasks" / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def case_of(arrays, case):
    found = {
        key.removeprefix(f"{case}/"): value.item() if value.dtype.kind == "U" else torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith(f"{case}/")
    }
    return found, json.loads(found["config_json"]) if "config_json" in found else {}


def difference(ours, theirs):
    """Largest absolute difference; infinite for other shapes or types."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0


def vocabulary_of(config):
    return Pix2SeqVocabulary(
        vocab_size=config.get("vocab_size", 3000), quantization_bins=config["quantization_bins"],
        coord_vocab_shift=config["coord_vocab_shift"],
    )  # fmt: skip


def test_every_case_is_replayed(serialization, decoding):
    assert {key.split("/")[0] for key in serialization} == set(SERIALIZATION_CASES)
    assert {key.split("/")[0] for key in decoding} == {*DECODING_CASES, "seq_to_bbox"}


@pytest.mark.parametrize("num_bins", [1000, 2000, 500, 64, 10])
def test_quantize(quantization, num_bins, parity_report):
    assert num_bins in quantization["bins"]
    case, _ = case_of(quantization, f"quantize_{num_bins}")
    parity_report(f"quantize, {num_bins} bins", difference(quantize(case["in"], num_bins), case["out"]))
    case, _ = case_of(quantization, f"dequantize_{num_bins}")
    parity_report(f"dequantize, {num_bins} bins", difference(dequantize(case["in"], num_bins), case["out"]))


def test_reserved_values(quantization, parity_report):
    case, _ = case_of(quantization, "reserved")
    assert list(RESERVED) == list(zip(case["floats"].tolist(), case["tokens"].tolist()))
    assert json.loads(case["constants_json"])["FAKE_CLASS_TOKEN"] == FAKE_CLASS_TOKEN
    case, _ = case_of(quantization, "floats_to_tokens")
    tokens = reserved_to_tokens(case["seq"], case["points"])
    parity_report("reserved numbers to tokens", difference(tokens, case["out"]))
    case, _ = case_of(quantization, "tokens_to_floats")
    points = reserved_to_floats(case["points"], case["seq"])
    parity_report("reserved tokens to numbers", difference(points, case["out"]))
    points = Pix2SeqVocabulary().decode_points(case["seq"])
    parity_report("points from tokens", difference(points, case["decode_instance_seq_to_points"]))
    case, _ = case_of(quantization, "preserve")
    kept = preserve_reserved(case["points"], case["points_orig"])
    parity_report("reserved numbers kept", difference(kept, case["out"]))


def test_point_geometry(quantization, parity_report):
    case, _ = case_of(quantization, "scale_points")
    for rank, scale in (
        ("rank1", case["rank1_scale"]),
        ("rank2", case["rank2_scale"]),
        ("rank2_common", case["rank2_common_scale"]),
        ("rank3", case["rank3_scale"][:, None]),  # the reference inserts this axis itself
    ):
        points = case[f"{rank.removesuffix('_common')}_in"]
        parity_report(f"scaled points, {rank}", difference(scale_points(points, scale), case[f"{rank}_out"]))
    case, _ = case_of(quantization, "crop_offset")
    moved = offset_points(case["points"], case["offset"][:, None])
    parity_report("points moved by the crop", difference(moved, case["out"]))
    case, _ = case_of(quantization, "yx2xy")
    parity_report("y, x to x, y", difference(swap_yx(case["in"]), case["out"]))
    case, _ = case_of(quantization, "pad_to_max_len")
    parity_report("padding, last axis", difference(resize_to(case["in"], 5, -1), case["out_len_5_last_dim"]))
    parity_report("padding, first axis", difference(resize_to(case["in"], 4, 0), case["out_len_4_dim_0"]))


@pytest.mark.parametrize("name", SERIALIZATION_CASES)
def test_serialization(serialization, name, parity_report):
    case, config = case_of(serialization, name)
    vocabulary = vocabulary_of(config)
    task = ObjectDetection()
    assert task.prompt_id == config["vocab_id"]
    assert task.prompt(vocabulary).expand(len(case["label"]), -1).equal(case["prompt_seq"])
    mode = config["class_label_corruption"]
    draws = CorruptionDraws(*(case[draw].squeeze(-1) for draw in DRAWS)) if mode != "none" else None
    objects = object_tokens(case["bbox"], case["label"], vocabulary)
    corrupted = torch.cat([objects[..., :4], corrupt_class_tokens(objects[..., 4:], draws, mode, vocabulary)], -1)
    weights = object_weights(objects, vocabulary, config["noise_bbox_weight"])
    targets = build_targets(
        case["bbox"], case["label"], vocabulary, draws, prompt=task.prompt(vocabulary),
        max_seq_len=config["max_seq_len"], class_label_corruption=mode,
        noise_bbox_weight=config["noise_bbox_weight"], eos_token_weight=config["eos_token_weight"],
    )  # fmt: skip
    ours = {
        "response_seq": objects.flatten(-2), "response_seq_corrupted": corrupted.flatten(-2),
        "response_token_weights": weights.flatten(-2), "input_seq": targets.decoder_input_ids,
        "target_seq": targets.labels, "token_weights": targets.label_weights,
    }  # fmt: skip
    parity_report(f"detection sequence, {name}", max(difference(ours[key], case[key]) for key in ours))

    # Only the class tokens of objects may differ between what is read and what is meant.
    read_differs = targets.decoder_input_ids[:, 1:] != targets.labels[:, :-1]
    assert not (read_differs & ~case["input_class_mask"][:, 1:]).any()


@pytest.mark.parametrize("name", SERIALIZATION_CASES)
def test_targets_of_one_record(serialization, name):
    """The task's own entrance, which pads and cuts, writes what the reference writes for a padded batch."""
    case, config = case_of(serialization, name)
    for row in range(len(case["label"])):
        image_id = case["image_ids"][row].item() if "image_ids" in case else -1
        untruncated = f"untruncated_bbox_{image_id}" in case
        boxes = case[f"untruncated_bbox_{image_id}"] if untruncated else case["bbox"][row]
        labels = case[f"untruncated_label_{image_id}"] if untruncated else case["label"][row]
        keep = len(labels) if untruncated else int((labels != 0).sum())
        record = {"image_id": image_id, "boxes_yxyx": boxes[:keep], "labels": labels[:keep]}
        targets = ObjectDetection().targets(
            record, vocabulary_of(config), max_instances_per_image=config["max_instances_per_image"],
            max_seq_len=config["max_seq_len"], class_label_corruption="none",
            noise_bbox_weight=config["noise_bbox_weight"], eos_token_weight=config["eos_token_weight"],
        )  # fmt: skip
        assert targets.labels.equal(case["target_seq"][row])
        assert targets.label_weights.equal(case["token_weights"][row])


@pytest.mark.parametrize("name", SERIALIZATION_CASES)
def test_drawn_corruption_stays_inside_the_class_mask(serialization, name):
    """`input_class_mask` marks what may differ under any corruption, and what a class token may be there."""
    case, config = case_of(serialization, name)
    allowed = case["input_class_mask"]
    for row in range(len(case["label"])):
        record = {"boxes_yxyx": case["bbox"][row], "labels": case["label"][row]}
        targets = ObjectDetection().targets(
            record, vocabulary_of(config), np.random.default_rng(row),
            max_instances_per_image=config["max_instances_per_image"], max_seq_len=config["max_seq_len"],
            eos_token_weight=config["eos_token_weight"], noise_bbox_weight=config["noise_bbox_weight"],
        )  # fmt: skip
        read = targets.decoder_input_ids
        true = torch.cat([torch.tensor([10]), case["target_seq"][row, :-1]])
        assert read[~allowed[row]].equal(true[~allowed[row]])
        at_classes = read[allowed[row]]
        assert ((at_classes == FAKE_CLASS_TOKEN) | ((at_classes >= 100) & (at_classes < 1000))).all()


@pytest.mark.parametrize("name", DECODING_CASES)
def test_decoding(decoding, name, parity_report):
    case, config = case_of(decoding, name)
    vocabulary = vocabulary_of(config)
    at_classes = case["logits"][:, 4::5].float()
    scores = class_labels_and_scores(at_classes, vocabulary.base_vocab_shift, vocabulary.coord_vocab_shift)
    found = ObjectDetection().parse(case["pred_seq"], scores, vocabulary)
    parity_report(f"decoded classes, {name}", difference(found.labels, case["pred_class"]))
    parity_report(f"decoded boxes, {name}", difference(found.boxes_yxyx, case["pred_bbox"]))
    parity_report(f"class scores, {name}", difference(found.scores, case["pred_score"]), 3e-6)

    sizes = torch.tensor(config["image_size"]), case["unpadded_image_size"], case["orig_image_size"]
    pixels = rescale_boxes(found.boxes_yxyx, *sizes)
    difference_pixels = max(
        difference(pixels, case["pred_bbox_rescaled"]),
        difference(rescale_boxes(case["gt_bbox"], *sizes), case["gt_bbox_rescaled"]),
        difference(scale_points(found.boxes_yxyx, sizes[0].float()), case["pred_bbox_rescaled_training"]),
    )
    parity_report(f"boxes in pixels, {name}", difference_pixels)

    recorded = json.loads(case["recorded_detections_json"])
    ours = [
        result
        for row, image_id in enumerate(case["image_ids"].tolist())
        for result in coco_results(image_id, found.labels[row], found.scores[row], pixels[row])
    ]
    assert [drop(line, "score") for line in ours] == [drop(line, "score") for line in recorded]
    worst = max(abs(a["score"] - b["score"]) for a, b in zip(ours, recorded))
    parity_report(f"recorded scores, {name}", worst, 3e-6)

    # The file for later stages subtracts in float64 instead of float32: one rounding apart.
    saved = json.loads(case["saved_annotations_json"])
    assert [line["id"] for line in saved] == list(range(17, 17 + len(ours)))
    assert [(line["image_id"], line["category_id"]) for line in saved] == [
        (line["image_id"], line["category_id"]) for line in ours
    ]
    assert np.allclose([line["bbox"] for line in saved], [line["bbox"] for line in ours], rtol=6e-8, atol=0)


def drop(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def test_malformed_streams_are_counted(decoding):
    case, config = case_of(decoding, "malformed")
    vocabulary = vocabulary_of(config)
    no_class, tokens, padding = ObjectDetection().parse(case["pred_seq"], None, vocabulary).malformed
    assert no_class == {"coordinate": 5, "class": 6, "inverted": 1}
    assert tokens == {"coordinate": 6, "class": 5}
    assert padding == {}  # the third stream is padding from end to end, which is no fault
    case, config = case_of(decoding, "odd_length")
    counts = ObjectDetection().parse(case["pred_seq"], None, vocabulary).malformed
    assert [row.get("incomplete", 0) for row in counts] == [1, 1, 0]  # the third ends in padding


def test_other_layouts_are_reorderings(decoding, parity_report):
    """The reference's unused layouts, rearranged into the one layout of this package."""
    case, _ = case_of(decoding, "seq_to_bbox")
    vocabulary = Pix2SeqVocabulary()
    slots = case["seq"].unflatten(-1, (-1, 5))
    layouts = {"yxyx_name": slots[..., :4], "name_yxyx": slots[..., 1:]}
    layouts["cycxhw_name"], layouts["name_cycxhw"] = map(corners_of, (slots[..., :4], slots[..., 1:]))
    for layout, bins in layouts.items():
        boxes = vocabulary.decode_boxes(bins + vocabulary.coord_vocab_shift)
        parity_report(f"boxes of layout {layout}", difference(boxes, case[layout]))


def corners_of(centres_and_sizes):
    centres, sizes = centres_and_sizes.split(2, -1)
    return torch.cat([centres - sizes // 2, centres + sizes // 2], -1)
