"""Keypoint sequences, their decoding and scores, and the suppressed token against the reference recordings."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf.generation_pix2seq import top_logits
from pix2seq_hf.image_processing_pix2seq import crop_points, crop_region, resized_size
from pix2seq_hf.task_base import box_prompts, point_tokens
from pix2seq_hf.task_keypoint_detection import (
    KeypointDetection,
    MaskingDraws,
    build_targets,
    replace_invisible,
    suppress_invisible,
    token_probabilities,
    triples_to_points,
    weighted_scores,
)
from pix2seq_hf.tokenization_pix2seq import (
    INVISIBLE_TOKEN,
    Pix2SeqVocabulary,
    offset_points,
    preserve_reserved,
    scale_points,
)

SERIALIZATION_CASES = [
    "multi",
    "single",
    "no_visible_keypoints",
    "zero_objects",
    "edge_values",
    "eos_0.5_invisible_0.25",
]
DECODING_CASES = [
    "single_per_image", "weight_0.3", "weight_0", "crop_offset", "two_per_image", "training_scale", "malformed",
]  # fmt: skip
SUPPRESSION_CASES = [
    "top_k_1", "top_p_0.1", "top_p_0.4_temperature_0.5", "peaked_top_p_0.1", "peaked_top_p_0.9", "top_k_1_unequal",
]  # fmt: skip
TASK = KeypointDetection()
VOCABULARY = Pix2SeqVocabulary()


def load(golden_dir, name):
    with np.load(golden_dir / "tasks" / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def serialization(golden_dir):
    return load(golden_dir, "serialization_keypoint_detection")


@pytest.fixture(scope="module")
def decoding(golden_dir):
    return load(golden_dir, "decoding_keypoint_detection")


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


def test_every_case_is_replayed(serialization, decoding):
    assert {key.split("/")[0] for key in serialization} == set(SERIALIZATION_CASES)
    suppression = {f"suppress_{name}" for name in [*SUPPRESSION_CASES, "input", "off"]}
    assert {key.split("/")[0] for key in decoding} == {*DECODING_CASES, *suppression, "weighted_scores"}


@pytest.mark.parametrize("name", SERIALIZATION_CASES)
def test_serialization(serialization, name, parity_report):
    case, config = case_of(serialization, name)
    assert config["vocab_id"] == TASK.prompt_id and config["quantization_bins"] == VOCABULARY.quantization_bins
    ours = {
        "prompt_seq": box_prompts(TASK.prompt_id, case["bbox"], case["label"], VOCABULARY),
        "response_seq": point_tokens(case["keypoints"], case["label"], VOCABULARY),
    }
    options = {key: config[key] for key in ("max_seq_len", "invisible_token_weight", "eos_token_weight")}
    uniform = case["mask_uniform_ratio_0.4"]
    for ratio in (0, 1, 0.4):
        draws = MaskingDraws(ratio, uniform)
        targets = build_targets(case["bbox"], case["label"], case["keypoints"], VOCABULARY, draws, **options)
        ours[f"input_seq_ratio_{ratio}"] = targets.decoder_input_ids
    ours["target_seq"], ours["token_weights"] = targets.labels, targets.label_weights
    parity_report(f"keypoint sequence, {name}", max(difference(ours[key], case[key]) for key in ours))

    for row in range(len(case["label"])):  # the task's own entrance, which pads and cuts
        keep = int((case["label"][row] != 0).sum())
        targets = TASK.targets(
            {
                "boxes_yxyx": case["bbox"][row, :keep], "labels": case["label"][row, :keep],
                "keypoints_yx": case["keypoints"][row, :keep],
            },
            VOCABULARY, max_instances_per_image=config["max_instances_per_image"], mask_inputs=False, **options,
        )  # fmt: skip
        assert targets.decoder_input_ids.equal(case["input_seq_ratio_0"][row])
        assert targets.labels.equal(case["target_seq"][row])
        assert targets.label_weights.equal(case["token_weights"][row])


def test_extraction(golden_dir, parity_report):
    arrays = load(golden_dir, "keypoint_extraction")
    raw = json.loads((golden_dir / "tasks" / "keypoint_extraction_raw.json").read_text())
    entries = {entry["annotation_id"]: entry for entry in raw}
    for split in ("train", "eval"):
        worst = 0.0
        for row, annotation in enumerate(arrays[f"{split}/annotation_ids"].tolist()):
            entry = entries[annotation]
            points = torch.from_numpy(triples_to_points(entry["keypoints"], 17)).float()
            scale_yx = 1 / torch.tensor([entry["height"], entry["width"]], dtype=torch.float32)
            theirs = torch.from_numpy(arrays[f"{split}/keypoints"][row])
            worst = max(worst, difference(scale_points(points, scale_yx), theirs))
        parity_report(f"keypoints of annotations, {split}", worst)


@pytest.mark.parametrize("name", DECODING_CASES)
def test_decoding(decoding, name, parity_report):
    case, config = case_of(decoding, name)
    logits_from = f"{name}/logits" if "logits" in case else case["logits_from"]
    logits = torch.from_numpy(decoding[logits_from]).float()
    tokens, boxes = case["pred_seq"], case["pred_bboxes"]
    plain = TASK.parse(tokens, None, VOCABULARY)
    parity_report(f"decoded keypoints, {name}", difference(plain.points_yx, case["decoded_points"]))
    found = TASK.parse(
        tokens, token_probabilities(logits, tokens), VOCABULARY, boxes_yxyx=boxes, box_scores=case["box_scores"],
        labels=case["pred_classes"], points_score_weight=config["points_score_weight"],
    )  # fmt: skip
    parity_report(f"keypoints with box centres, {name}", difference(found.points_yx, case["pred_points"]))

    repeats = len(tokens) // len(case["image_ids"])
    image_size = torch.tensor(config["image_size"], dtype=torch.float32)
    unpadded, original = (
        case[f"{size}_image_size"].float().repeat_interleave(repeats, 0) for size in ("unpadded", "orig")
    )
    scale = image_size if config["training"] else (image_size / unpadded * original)[:, None]
    pixels = scale_points(found.points_yx, scale)
    if "crop_offset" in case:
        pixels = offset_points(pixels, case["crop_offset"][:, None])
    parity_report(f"keypoints in pixels, {name}", difference(pixels, case["pred_points_rescaled"]))

    theirs = case["scores"]
    is_nan = theirs.isnan()
    assert is_nan.equal((tokens == 0).all(-1) & (case["pred_classes"] == 1))
    assert (found.scores[is_nan] == 0).all()  # the reference's division by zero
    parity_report(f"keypoint scores, {name}", difference(found.scores[~is_nan], theirs[~is_nan]), 3e-6)

    recorded = json.loads(case["recorded_detections_json"])
    rows = (case["pred_classes"] == 1).nonzero()[:, 0].tolist()
    ids = case["image_ids_per_instance"].tolist()
    assert [(line["image_id"], line["category_id"]) for line in recorded] == [(ids[row], 1) for row in rows]
    for row, line in zip(rows, recorded):
        assert [line["keypoints"][0::3], line["keypoints"][1::3]] == [
            pixels[row, 1::2].tolist(), pixels[row, 0::2].tolist()
        ]  # fmt: skip


def test_weighted_scores(decoding, parity_report):
    case, _ = case_of(decoding, "weighted_scores")
    tokens = case["pred_seq"]
    probabilities = token_probabilities(case["logits"].float(), tokens)
    for weight in (1.0, 0.25, 0.0):
        ours = weighted_scores(case["bbox_scores"], tokens, probabilities, weight, VOCABULARY)
        theirs = case[f"out_weight_{weight}"]
        assert theirs.isnan().tolist() == [False, True, False, False]  # only padding
        assert ours[1] == (1 - weight) * case["bbox_scores"][1]
        parity_report(f"weighted scores, weight {weight}", difference(ours[[0, 2, 3]], theirs[[0, 2, 3]]), 3e-6)
    ours = weighted_scores(case["bbox_scores"][:2], tokens, probabilities, 0.25, VOCABULARY)
    theirs = case["out_two_samples_weight_0.25"]
    assert ours.isfinite().all() and theirs.isnan().tolist() == [True, False]
    parity_report("weighted scores, two samples", difference(ours[1:], theirs[1:]), 3e-6)


def suppression_logits(decoding, name):
    peaked = "_peaked" if "peaked" in name else ""
    logits = torch.from_numpy(decoding[f"suppress_input/logits{peaked}"]).float()
    if name == "top_k_1_unequal":  # as its note says
        logits[1, 3, :] = -2.0
        logits[1, 3, 1234] = 1.25
        logits[:, -1, 1777] = 6.5
    return logits


@pytest.mark.parametrize("name", SUPPRESSION_CASES)
def test_candidates_without_the_invisible_token(decoding, name, parity_report):
    case, config = case_of(decoding, f"suppress_{name}")
    logits = suppress_invisible(suppression_logits(decoding, name), VOCABULARY)
    kept = top_logits(logits / config["temperature"], k=config["top_k"], p=config["top_p"], mask=float("-inf"))
    candidates = kept > float("-inf")
    packed = torch.from_numpy(np.packbits(candidates.numpy(), axis=-1))
    wrong = difference(packed, case["candidate_mask_per_step_packed"])
    parity_report(f"candidates per step, {name}", wrong)
    assert candidates.sum(-1).equal(case["candidate_count_per_step"])
    assert not candidates[..., INVISIBLE_TOKEN].any()
    if "prompt_seq" in case:
        shared, _ = case_of(decoding, "suppress_input")
        ours = box_prompts(TASK.prompt_id, shared["bbox"], shared["label"], VOCABULARY)
        assert ours.equal(case["prompt_seq"])
        assert case["infer_max_seq_len"] == 2 * 17 + 6


def test_suppression(decoding, parity_report):
    case, _ = case_of(decoding, "suppress_top_k_1")
    shared, _ = case_of(decoding, "suppress_input")
    logits = suppress_invisible(suppression_logits(decoding, "top_k_1"), VOCABULARY)
    parity_report("suppressed logits", difference(logits[..., INVISIBLE_TOKEN], case["logits_at_41"]))
    tokens = replace_invisible(shared["pred_seq"], logits.argmax(-1), VOCABULARY)
    parity_report("tokens without the invisible one", difference(tokens, case["pred_seq"]))
    scores = weighted_scores(torch.zeros(4), tokens, token_probabilities(logits, tokens), 1.0, VOCABULARY)
    parity_report("scores without the invisible token", difference(scores, case["weighted_scores"]), 3e-6)
    off, _ = case_of(decoding, "suppress_off")
    assert off["pred_seq"].equal(shared["pred_seq"])


def test_crops(golden_dir, parity_report):
    arrays = load(golden_dir, "crop_to_bbox")
    rule, _ = case_of(arrays, "region_rule")
    regions, boxes = [], []
    for box, size, pad_scale in zip(rule["bbox"], rule["image_hw"].tolist(), rule["pad_scale"].tolist()):
        region = crop_region(box, size, pad_scale)
        regions.append(region)
        boxes.append(crop_points(box, region, size).clamp(0, 1))
    parity_report("crop regions, rule", difference(torch.tensor(regions), rule["region_yxhw"]))
    parity_report("boxes in crops, rule", difference(torch.stack(boxes), rule["bbox_out"]), 2e-6)

    names = sorted({key.split("/")[0] for key in arrays if key.startswith("keypoints_")})
    assert len(names) >= 4
    for name in names:
        case, _ = case_of(arrays, name)
        size, pad_scale = case["in/image_size"].tolist(), float(name.rsplit("_", 1)[1])
        order = case["in/scores"].argsort(descending=True, stable=True)
        regions = [crop_region(box, size, pad_scale) for box in case["in/bbox"][order]]
        parity_report(f"crop regions, {name}", difference(torch.tensor(regions), case["out/region_yxhw"]))
        offsets = torch.tensor(regions, dtype=torch.int32)[:, :2]
        assert offsets.equal(case["out/crop_offset"])
        worst = {"bbox": 0.0, "keypoints": 0.0, "eval/bbox": 0.0, "eval/keypoints": 0.0}
        target = case["eval/target_size"].tolist()
        for row, region in enumerate(regions):
            box = crop_points(case["in/bbox"][order][row], region, size).clamp(0, 1)
            points = case["in/keypoints"][order][row]
            moved = crop_points(points, region, size)
            pairs = moved.unflatten(-1, (-1, 2))
            is_outside = ((pairs <= 0) | (pairs >= 1)).any(-1, keepdim=True)
            moved = preserve_reserved(pairs.masked_fill(is_outside, -3.0).flatten(), points)
            worst["bbox"] = max(worst["bbox"], difference(box, case["out/bbox"][row, 0]))
            worst["keypoints"] = max(worst["keypoints"], difference(moved, case["out/keypoints"][row, 0]))
            unpadded = resized_size(region[2:], target)
            assert list(unpadded) == case["eval/unpadded_image_size"][row].tolist()
            share = torch.tensor(unpadded, dtype=torch.float32) / torch.tensor(target, dtype=torch.float32)
            box = scale_points(box, share)
            worst["eval/bbox"] = max(worst["eval/bbox"], difference(box, case["eval/bbox"][row, 0]))
            worst["eval/keypoints"] = max(
                worst["eval/keypoints"], difference(scale_points(moved, share), case["eval/keypoints"][row, 0])
            )
        for field, value in worst.items():
            parity_report(f"{field} in crops, {name}", value, 2e-6)
