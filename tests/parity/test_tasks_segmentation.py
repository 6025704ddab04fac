"""Segmentation sequences, their decoding, and masks against the reference recordings."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf.image_processing_pix2seq import crop_points, crop_region
from pix2seq_hf.masks_pix2seq import join_parts, rasterize, segmentation_parts, split_parts
from pix2seq_hf.task_base import Frame, box_prompts, point_tokens
from pix2seq_hf.task_instance_segmentation import InstanceSegmentation, build_targets, draw_object
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary, offset_points, preserve_reserved, scale_points

SERIALIZATION_CASES = [
    "default", "truncated", "zero_objects", "max_points_24", "long_max_seq_len_eos_0.2", "long_polygons", "edge_values",
]  # fmt: skip
DECODING_CASES = [
    "malformed", "malformed_ensemble", "threshold_inclusive", "threshold_0.6", "crop_offset", "training_scale",
]  # fmt: skip
TASK = InstanceSegmentation()
VOCABULARY = Pix2SeqVocabulary()


def load(golden_dir, name):
    with np.load(golden_dir / "tasks" / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def serialization(golden_dir):
    return load(golden_dir, "serialization_instance_segmentation")


@pytest.fixture(scope="module")
def decoding(golden_dir):
    return load(golden_dir, "decoding_instance_segmentation")


def case_of(arrays, case):
    found = {
        key.removeprefix(f"{case}/"): value.item() if value.dtype.kind == "U" and not value.ndim else value
        for key, value in arrays.items()
        if key.startswith(f"{case}/")
    }
    found = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind != "U" else value
        for key, value in found.items()
    }
    return found, json.loads(found["config_json"])


def difference(ours, theirs):
    """Largest absolute difference; infinite for other shapes or types."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0


def decoding_cases(decoding):
    return sorted({key.split("/")[0] for key in decoding} - {"split"})


def test_every_case_is_replayed(serialization, decoding):
    assert {key.split("/")[0] for key in serialization} == set(SERIALIZATION_CASES)
    real = {case for case in decoding_cases(decoding) if case.startswith("real_")}
    assert set(decoding_cases(decoding)) - real == set(DECODING_CASES) and len(real) >= 2


@pytest.mark.parametrize("name", SERIALIZATION_CASES)
def test_serialization(serialization, name, parity_report):
    case, config = case_of(serialization, name)
    assert config["vocab_id"] == TASK.prompt_id and config["quantization_bins"] == VOCABULARY.quantization_bins
    targets = build_targets(
        case["bbox"], case["label"], case["polygon"], VOCABULARY, config["max_seq_len"], config["eos_token_weight"]
    )
    ours = {
        "prompt_seq": box_prompts(TASK.prompt_id, case["bbox"], case["label"], VOCABULARY),
        "response_seq": point_tokens(case["polygon"], case["label"], VOCABULARY),
        "input_seq": targets.decoder_input_ids,
        "target_seq": targets.labels,
        "token_weights": targets.label_weights,
    }
    parity_report(f"segmentation sequence, {name}", max(difference(ours[key], case[key]) for key in ours))

    for row in range(len(case["label"])):  # the task's own entrance, which pads and cuts
        keep = int((case["label"][row] != 0).sum())
        record = {"boxes_yxyx": case["bbox"][row, :keep], "labels": case["label"][row, :keep]}
        targets = TASK.targets(
            {**record, "polygons_yx": case["polygon"][row, :keep]}, VOCABULARY,
            max_instances_per_image=config["max_instances_per_image"],
            max_points_per_object=config["max_points_per_object"],
            max_seq_len=config["max_seq_len"], eos_token_weight=config["eos_token_weight"],
        )  # fmt: skip
        assert targets.decoder_input_ids.equal(case["input_seq"][row])
        assert targets.labels.equal(case["target_seq"][row])
        assert targets.label_weights.equal(case["token_weights"][row])


def test_flattening(golden_dir, parity_report):
    arrays = load(golden_dir, "polygon_flattening")
    raw = json.loads((golden_dir / "tasks" / "polygon_flattening_raw.json").read_text())
    assert [entry["annotation_id"] for entry in raw] == arrays["annotation_ids"].tolist()
    splits = arrays["flat_xy_row_splits"]
    worst = {"flat": 0.0, 128: 0.0, 24: 0.0}
    for row, entry in enumerate(raw):
        size = entry["height"], entry["width"]
        parts = segmentation_parts(entry["segmentation"], size)
        flat_xy = torch.from_numpy(arrays["flat_xy_values"][splits[row] : splits[row + 1]])
        num_points = len(flat_xy) // 2
        ours = torch.from_numpy(join_parts(parts, num_points))
        worst["flat"] = max(worst["flat"], difference(ours.unflatten(0, (-1, 2)).flip(-1).flatten(), flat_xy))
        scale_yx = 1 / torch.tensor(size, dtype=torch.float32)
        for max_points in (128, 24):
            points = scale_points(torch.from_numpy(join_parts(parts, max_points)).float(), scale_yx)
            theirs = torch.from_numpy(arrays[f"polygon_normalised_yx_{max_points}"][row])
            worst[max_points] = max(worst[max_points], difference(points, theirs))
    for name, value in worst.items():
        parity_report(f"flattened polygons, {name}", value)


def test_decoding(decoding, parity_report):
    for name in decoding_cases(decoding):
        case, config = case_of(decoding, name)
        tokens = case["pred_seq"]
        points = TASK.parse(tokens, None, VOCABULARY).points_yx[:, : 2 * config["max_points_per_object"]]
        parity_report(f"decoded polygons, {name}", difference(points, case["pred_points"]))

        repeats = len(tokens) // len(case["image_ids"])
        image_size = torch.tensor(config["image_size"], dtype=torch.float32)
        unpadded, original = (
            case[f"{size}_image_size"].float().repeat_interleave(repeats, 0) for size in ("unpadded", "orig")
        )
        is_training = name == "training_scale"
        scale = image_size if is_training else (image_size / unpadded * original)[:, None]
        pixels = scale_points(points, scale)
        if "crop_offset" in case:
            pixels = offset_points(pixels, case["crop_offset"].repeat_interleave(repeats, 0)[:, None])
        parity_report(f"polygons in pixels, {name}", difference(pixels, case["pred_points_rescaled"]))

        sizes = [tuple(size) for size in case["mask_size_per_sample"].tolist()]
        samples = [split_parts(row) for row in pixels.numpy()]
        masks = [rasterize([parts], size).full() for parts, size in zip(samples, sizes)]
        wrong = sum((mask != case[f"sample_mask_{row:02d}"].numpy()).sum() for row, mask in enumerate(masks))
        parity_report(f"pixels of the masks, {name}", wrong)

        per_object = config["ensemble_num_samples"]
        windows = [
            rasterize(samples[first : first + per_object], sizes[first], config["ensemble_threshold"])
            for first in range(0, len(samples), per_object)
        ]
        wrong = sum(
            (window.full() != case[f"ensemble_mask_{row:02d}"].numpy()).sum() for row, window in enumerate(windows)
        )
        parity_report(f"pixels of the averaged masks, {name}", wrong)

        ids, labels, scores = (case[key].tolist() for key in ("image_ids_per_instance", "pred_classes", "scores"))
        recorded = [
            {"image_id": image, "category_id": label, "score": score, "segmentation": window.rle()}
            for image, label, score, window in zip(ids, labels, scores, windows)
            if label
        ]
        assert recorded == json.loads(case["recorded_detections_json"])


def test_whole_objects(decoding):
    """The way of the processor, from points to averaged masks, where a frame can say what the reference says."""
    for name in ("malformed", "threshold_0.6", "threshold_inclusive"):
        case, config = case_of(decoding, name)
        per_object, per_picture = config["ensemble_num_samples"], config["n_instances"]
        points = TASK.parse(case["pred_seq"], None, VOCABULARY).points_yx
        for index in range(len(case["pred_classes"])):
            picture = index // per_picture
            size = tuple(case["orig_image_size"][picture].tolist())
            frame = Frame(picture, size, tuple(config["image_size"]))
            if tuple(case["mask_size_per_sample"][index * per_object].tolist()) != size:
                continue
            rows = points[index * per_object : (index + 1) * per_object]
            window, _ = draw_object(rows, frame, config["ensemble_threshold"])
            assert (window.full() == case[f"ensemble_mask_{index:02d}"].numpy()).all(), (name, index)


def test_crops(golden_dir, parity_report):
    arrays = load(golden_dir, "crop_to_bbox")
    names = sorted({key.split("/")[0] for key in arrays if key.startswith("polygons_")})
    assert len(names) == 2
    for name in names:
        case = {key.removeprefix(f"{name}/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(name)}
        size, pad_scale = case["in/image_size"].tolist(), float(name.rsplit("_", 1)[1])
        order = case["in/scores"].argsort(descending=True, stable=True)
        regions = [crop_region(box, size, pad_scale) for box in case["in/bbox"][order]]
        parity_report(f"crop regions, {name}", difference(torch.tensor(regions), case["out/region_yxhw"]))
        worst = 0.0
        for row, (region, points) in enumerate(zip(regions, case["in/polygon"][order])):
            moved = preserve_reserved(crop_points(points, region, size).clamp(0, 1), points)
            worst = max(worst, difference(moved, case["out/polygon"][row, 0]))
        parity_report(f"polygons in crops, {name}", worst, 2e-6)


def test_splitting(decoding, parity_report):
    rows_xy = torch.from_numpy(decoding["split/xy_rows"])
    rows_yx = rows_xy.unflatten(-1, (-1, 2)).flip(-1).flatten(-2).numpy()
    ours = [[part.tolist() for part in split_parts(row)] for row in rows_yx]
    assert ours == json.loads(decoding["split/parts_json"].item())
    parity_report("parts of polygons", 0.0)


def test_malformed_streams_are_counted(decoding):
    case, _ = case_of(decoding, "malformed")
    notes = decoding["malformed/row_notes"].tolist()
    counts = dict(zip(notes, TASK.parse(case["pred_seq"], None, VOCABULARY).malformed))
    assert counts["square"] == counts["two parts"] == counts["full random"] == {}
    assert counts["two points"] == counts["one point"] == counts["all padding"] == {"short_part": 1}
    assert counts["all separators"] == {"short_part": 17}
    assert counts["separator in y only"] == {"half": 1}
    assert counts["padding in x only"] == {"half": 1, "after_end": 3}
    assert counts["invisible token"] == {"coordinate": 1}
    assert counts["class and text tokens"] == {"coordinate": 2}
    assert counts["token 1 first"] == counts["token 1 in the middle"] == {"coordinate": 1}
    assert counts["constant out of range"] == {"coordinate": 16}
    assert counts["double separators and padding"] == {"short_part": 3}
    assert counts["separator first"] == {"short_part": 1}
