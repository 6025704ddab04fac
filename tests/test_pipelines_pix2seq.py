"""`pipeline("pix2seq")`: all tasks in one call, on a small model with random weights."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import pipeline

from pix2seq_hf import Pix2SeqPipeline, TaskOptions, run_tasks
from pix2seq_hf.engine import choose_tasks, word_tokens
from tiny_model import noise_picture
from tiny_multitask import NAMES, WORDS, multitask_config, multitask_model, multitask_processor, save_multitask

ALL = ("object_detection", "instance_segmentation", "keypoint_detection", "captioning")
GREEDY = {"do_sample": False}
BOXES = {"boxes": [[5, 4, 60, 50], [20, 10, 90, 55], [0, 0, 30, 30]], "labels": ["person", 18, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multitask")
    save_multitask(folder)
    return str(folder)


@pytest.fixture(scope="module")
def look(folder):
    return pipeline("pix2seq", model=folder, device="cpu")


@pytest.fixture
def picture():
    return noise_picture(60, 100)


@pytest.fixture
def spied(look, monkeypatch):
    """Keyword arguments of every call of `generate`, and the shape of every batch that is encoded."""
    calls, encoded = [], []
    generate, encoder = look.model.generate, look.model.get_encoder()

    def spy(*args, **kwargs):
        output = generate(*args, **kwargs)
        calls.append({**kwargs, "rows": len(output["sequences"]), "length": output["sequences"].shape[1]})
        return output

    monkeypatch.setattr(look.model, "generate", spy)
    hook = encoder.register_forward_pre_hook(lambda module, args: encoded.append(tuple(args[0].shape)))
    yield calls, encoded
    hook.remove()


def test_from_a_saved_folder_in_a_new_process(folder, tmp_path):
    noise_picture(60, 100).save(tmp_path / "street.png")
    code = (
        "import sys, pix2seq_hf\n"
        "assert 'torch' not in sys.modules and 'pix2seq_hf.pipelines' not in sys.modules\n"
        "from transformers import pipeline\n"
        "look = pipeline('pix2seq', model=sys.argv[1], device='cpu')\n"
        "result = look(sys.argv[2], tasks=['object_detection', 'instance_segmentation', 'captioning'], threshold=0, "
        "seed=1)\n"
        "print(result.to_json())\n"
    )
    arguments = [sys.executable, "-c", code, folder, str(tmp_path / "street.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["objects"] and all("rle" in entry and "keypoints" not in entry for entry in found["objects"])
    assert len(found["captions"]) == 1


def test_registered_also_when_the_library_was_first(folder):
    code = (
        "import transformers.pipelines, sys\n"
        "import pix2seq_hf\n"
        "assert 'pix2seq_hf.pipelines' not in sys.modules\n"
        "print(type(transformers.pipeline('pix2seq', model=sys.argv[1], device='cpu')).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["Pix2SeqPipeline"], done.stderr


def test_all_tasks(look, picture):
    result = look(picture, threshold=0.0, seed=2)
    assert isinstance(look, Pix2SeqPipeline)
    assert result.tasks == ALL and set(result.malformed) == set(ALL)
    assert len(result.objects) > 3
    for found in result["objects"]:
        assert found["label"] in NAMES.values() or found["label"].startswith("class ")
        xmin, ymin, xmax, ymax = found.box_xyxy
        assert 0 <= xmin < xmax <= 100 and 0 <= ymin < ymax <= 60
        assert found["mask"].shape == (60, 100) and set(np.unique(found["mask"])) <= {0, 1}
        if found.label_id == 1:
            assert [point.name for point in found["keypoints"]] == look.model.config.keypoint_names
            assert 0 < found.keypoints_score <= 1 and all(0 < point.score <= 1 for point in found.keypoints)
        else:
            assert found["keypoints"] is None
    assert any(found.label_id == 1 for found in result.objects) and any(found["mask"].any() for found in result.objects)
    assert len(result["captions"]) == 1 and set(result["captions"][0].split()) <= {*WORDS, "<unk>"}
    assert np.array_equal(np.array(result.image), np.array(picture))


def test_a_picture_is_encoded_once_and_crops_are_one_batch(look, picture, spied):
    calls, encoded = spied
    result = look(picture, threshold=0.0, seed=1, classes=["person"])
    persons = result.objects
    assert len(persons) > 1
    assert encoded == [(1, 3, 48, 64), (len(persons), 3, 48, 64)]
    assert [call["task"] for call in calls] == list(ALL)
    detection, masks, keypoints, captions = calls
    assert masks["rows"] == 8 * len(result.objects) and keypoints["rows"] == len(persons)
    pictures = {call["encoder_outputs"].last_hidden_state.data_ptr() for call in (detection, masks, captions)}
    assert len(pictures) == 1  # the same memory, no copies


def test_crops_of_a_batch_are_one_batch(look, spied):
    calls, encoded = spied
    pictures = [noise_picture(60, 100), noise_picture(30, 50)]
    boxes, labels = [[[1, 1, 9, 9]] * 2, [[2, 2, 20, 9]]], [[1, 1], [1]]
    look(pictures, tasks="keypoint_detection", boxes=boxes, labels=labels, batch_size=2)
    assert encoded == [(3, 3, 48, 64)] and [call["rows"] for call in calls] == [3]


def test_tasks_by_name(look, picture):
    names = "captioning, object_detection"
    result = look(picture, tasks=names, threshold=0.0)
    assert result.tasks == ("object_detection", "captioning") and result.captions
    assert all(found.mask is None and found.keypoints is None for found in result.objects)
    assert look(picture, tasks="captioning").objects == []
    assert look(picture, tasks=["object_detection"]).captions == []
    with pytest.raises(ValueError, match="unknown task 'masks': known are object_detection, instance_segmentation"):
        look(picture, tasks="masks")
    with pytest.raises(ValueError, match="tasks is empty"):
        look(picture, tasks=[])


def test_a_task_that_the_model_was_not_trained_for(picture):
    model = multitask_model(tasks=["object_detection"])
    processor = multitask_processor(model.config)
    with pytest.raises(
        ValueError, match=r"not trained for 'captioning': its tasks are object_detection \(config.tasks"
    ):
        run_tasks(model, processor, [picture], TaskOptions(tasks=["captioning"]))
    [result] = run_tasks(model, processor, [picture], TaskOptions(tasks="all", threshold=0.0))
    assert result.tasks == ("object_detection",) and result.objects


def test_text_without_tokenizer(picture):
    model = multitask_model()
    processor = multitask_processor(model.config, has_tokenizer=False)
    with pytest.raises(ValueError, match="captioning needs a tokenizer and the processor has none"):
        run_tasks(model, processor, [picture])
    assert choose_tasks(model.config, processor, ALL[:3]) == ALL[:3]


def test_masks_need_boxes_where_the_model_cannot_detect(picture):
    model = multitask_model(tasks=["instance_segmentation"])
    look = Pix2SeqPipeline(model, processor=multitask_processor(model.config), device="cpu")
    with pytest.raises(ValueError, match="give boxes and labels"):
        look(picture)
    assert look(picture, **BOXES).masks.shape == (3, 60, 100)


def test_threshold_classes_and_limits(look, picture, spied):
    calls, _ = spied
    options = {"tasks": "object_detection", "seed": 1}
    everything = look(picture, threshold=0.0, **options)
    middle = float(np.median(everything.scores))
    kept = look(picture, threshold=middle, **options)
    assert 0 < len(kept.objects) < len(everything.objects)
    assert [f.to_dict() for f in kept.objects] == [f.to_dict() for f in everything.objects if f.score >= middle]
    only = look(picture, threshold=0.0, classes=["toothbrush"], **options)
    assert {found.label for found in only.objects} == {"toothbrush"}
    look(picture, max_objects=2, **options)
    assert calls[-1]["length"] == 1 + 5 * 2
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        look(picture, classes=["cat"])


def test_outlines_per_object(look, picture, spied):
    calls, _ = spied
    look(picture, tasks="instance_segmentation", num_samples=3, max_points=4, **BOXES)
    assert calls[-1]["rows"] == 9 and calls[-1]["length"] <= 6 + 2 * 4
    look(picture, tasks="instance_segmentation", generate_kwargs=GREEDY, **BOXES)
    assert calls[-1]["rows"] == 3  # without chance one outline is enough


def test_settings_of_generate_for_one_task(look, picture, spied):
    calls, _ = spied
    chosen = {"top_p": 0.3, "captioning": {"do_sample": False, "num_beams": 2}}
    look(picture, threshold=0.0, generate_kwargs=chosen, classes=[1])
    by_task = {call["task"]: call for call in calls}
    assert by_task["object_detection"]["top_p"] == by_task["keypoint_detection"]["top_p"] == 0.3
    assert by_task["captioning"]["num_beams"] == 2 and "num_beams" not in by_task["object_detection"]


def test_numbers_of_sequences_have_names_of_their_own():
    for chosen in ({"num_return_sequences": 2}, {"captioning": {"num_return_sequences": 2}}):
        with pytest.raises(ValueError, match="num_samples for outlines and num_captions for captions"):
            TaskOptions(generate_kwargs=chosen)


def test_arrays_are_pictures_too(look, picture):
    pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0)
    options = TaskOptions(threshold=0.0, seed=2)
    [found] = run_tasks(look.model, look.processor, [pixels], options)
    [expected] = run_tasks(look.model, look.processor, [picture], options)
    assert found.to_json() == expected.to_json() and any(entry.keypoints for entry in found.objects)
    assert found.image is None


def test_keypoints_that_the_model_does_not_see(picture):
    model = multitask_model()
    with torch.no_grad():
        model.lm_head.bias[41] = 6.0
    look = Pix2SeqPipeline(model, processor=multitask_processor(model.config), device="cpu")
    result = look(picture, tasks="keypoint_detection", generate_kwargs={"top_p": 1.0}, seed=0, **BOXES)
    visible = [point.visible for found in (result.objects[0], result.objects[2]) for point in found.keypoints]
    assert {True, False} == set(visible)
    assert np.isfinite(result.keypoints_xy[[0, 2]]).all()  # all have a place


def test_words_and_number_of_captions(look, picture):
    options = {"tasks": "captioning", "allowed_words": ["the", "red dog"], "seed": 3}
    result = look(picture, num_captions=4, **options)
    assert len(result.captions) == 4
    said = {word for caption in result.captions for word in caption.split()}
    assert said and said <= {"the", "red", "dog"}
    with pytest.raises(ValueError, match="does not know 'zebra'"):
        look(picture, tasks="captioning", allowed_words=["the", "zebra"])
    with pytest.raises(ValueError, match="allowed_words is empty"):
        look(picture, tasks="captioning", allowed_words=[])
    assert word_tokens("dog", look.processor) == [3000 + 3 + WORDS.index("dog")]


def test_a_seed_makes_it_reproducible_and_touches_nothing(look, picture):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = look(picture, threshold=0.0, seed=1).to_json()
    assert torch.equal(torch.rand(3), expected)
    assert look(picture, threshold=0.0, seed=1).to_json() == first
    assert look(picture, threshold=0.0, seed=2).to_json() != first
    together = look([noise_picture(20, 30), picture], threshold=0.0, seed=1)  # one at a time
    assert together[1].to_json() == first
    assert look(picture, threshold=0.0).to_json() != look(picture, threshold=0.0).to_json()


def test_groups_of_outlines_do_not_change_the_masks(look, picture, spied):
    calls, _ = spied
    options = {"tasks": "instance_segmentation", "generate_kwargs": GREEDY, **BOXES}
    whole = look(picture, **options)
    assert whole.masks.any()
    in_groups = look(picture, max_sequences=2, **options)
    assert [call["rows"] for call in calls] == [3, 2, 1]
    assert in_groups.to_json() == whole.to_json()
    look(picture, max_sequences=1, **{**options, "generate_kwargs": {}})
    assert [call["rows"] for call in calls[3:]] == [8, 8, 8]  # never less than an object


def test_groups_do_not_draw_the_same_numbers(look, picture):
    twice = {"boxes": [[5, 4, 60, 50]] * 2, "labels": [1, 1], "num_samples": 1, "max_sequences": 1}
    first, second = look(picture, tasks="instance_segmentation", seed=1, **twice).objects
    assert first.polygons_xy != second.polygons_xy


def test_groups_of_crops_do_not_change_the_keypoints(look, picture, spied):
    calls, _ = spied
    options = {"tasks": "keypoint_detection", "generate_kwargs": GREEDY, **BOXES}
    whole = look(picture, **options)
    assert [found.keypoints is None for found in whole.objects] == [False, True, False]
    in_groups = look(picture, max_crops=1, **options)
    assert [call["rows"] for call in calls] == [2, 1, 1]
    assert np.allclose(in_groups.keypoints_xy, whole.keypoints_xy, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("task", ["instance_segmentation", "keypoint_detection"])
def test_the_same_as_processor_and_generate(look, picture, task):
    boxes, labels = [[[5.0, 4, 60, 50], [0, 0, 30, 30]]], [[1, 1]]
    result = look(picture, tasks=task, boxes=boxes[0], labels=labels[0], generate_kwargs=GREEDY)
    inputs = look.processor(images=picture, task=task, boxes=boxes, labels=labels, return_tensors="pt")
    extra = {"num_return_sequences": 1} if task == "instance_segmentation" else {}
    output = look.model.generate(**inputs, do_sample=False, **extra)
    [expected] = look.processor.post_process_generation(
        output, task=task, target_sizes=[(60, 100)], boxes=boxes, labels=labels
    )
    if task == "instance_segmentation":
        assert np.array_equal(result.masks, expected["masks"].numpy()) and result.masks.any()
    else:
        assert np.allclose(result.keypoints_xy, expected["keypoints"].numpy(), atol=1e-3)
        assert [f.keypoints_score for f in result.objects] == pytest.approx(expected["scores"].tolist(), abs=1e-5)


def test_boxes_that_the_user_gives(look, picture):
    result = look(picture, **BOXES)
    assert [found.label for found in result.objects] == ["person", "dog", "person"]
    assert result.boxes_xyxy.tolist() == BOXES["boxes"] and result.scores.tolist() == [1, 1, 1]
    assert "object_detection" not in result.malformed  # nothing was detected
    again = look(picture, tasks="instance_segmentation", objects=result.objects, seed=1)
    coco = look({"image": picture, "objects": result.to_coco()}, tasks="instance_segmentation", seed=1)
    assert again.to_json() == coco.to_json() and len(again.objects) == 3
    assert look(picture, threshold=0.9, objects=[{**result.to_coco()[0], "score": 0.2}]).scores == pytest.approx([0.2])


def test_some_pictures_with_boxes_and_some_without(look, picture):
    entries = [picture, {"image": picture, **BOXES}, {"image": picture, "boxes": [], "labels": []}]
    expected = [look(entry, tasks=ALL[:2], threshold=0.0, seed=1) for entry in entries]
    assert len(expected[0].objects) > 0 and [len(entry.objects) for entry in expected[1:]] == [3, 0]
    for batch_size in (2, 3):
        found = look(entries, tasks=ALL[:2], threshold=0.0, seed=1, batch_size=batch_size)
        assert [result.to_json() for result in found] == [result.to_json() for result in expected]


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([5, 5, float("nan"), 20], r"boxes\[1\] .* is not finite"),
        ([30, 5, 5, 20], r"boxes\[1\] \[30, 5, 5, 20\] is reversed"),
        ([5, 5, 5, 20], r"boxes\[1\] .* has no area"),
        ([200, 5, 300, 20], r"boxes\[1\] .* lies outside of its picture of 100 x 60 pixels"),
        ([5, 5, 20], "boxes"),
    ],
)
def test_unusable_boxes(look, picture, box, problem):
    with pytest.raises(ValueError, match=problem):
        look(picture, boxes=[[1, 1, 9, 9], box], labels=[1, 1])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"boxes": [[1, 1, 9, 9]]}, "without labels"),
        ({"boxes": [[1, 1, 9, 9]], "labels": [1, 1]}, "2 labels were given for the 1 boxes"),
        ({"boxes": [[1, 1, 9, 9]], "labels": ["zebra"]}, "unknown label 'zebra'"),
        ({"boxes": [[1, 1, 9, 9]], "labels": [2]}, "unknown label 2"),
        ({"labels": [1]}, "without boxes"),
        ({"objects": [{"box": [1, 1, 9, 9]}]}, r"objects\[0\] has a box without a label"),
        ({"objects": [{"bbox": [1, 1, 9], "category_id": 1}]}, r"objects\[0\]: bbox must be x, y, width, height"),
        ({"objects": [{"box": {"xmin": 1}, "label": 1}]}, r"objects\[0\]: box must be xmin, ymin, xmax, ymax"),
        ({"objects": [{"label": 1}]}, r"objects\[0\] has neither box nor bbox"),
        ({"objects": [], "boxes": [[1, 1, 9, 9]], "labels": [1]}, "either objects, or boxes"),
    ],
)
def test_incomplete_objects(look, picture, given, problem):
    with pytest.raises(ValueError, match=problem):
        look(picture, **given)


def test_boxes_beyond_the_picture_are_cut_and_it_is_said(look, picture):
    with pytest.warns(UserWarning, match=r"boxes\[1\] outside of the picture"):
        result = look(picture, tasks="keypoint_detection", boxes=[[1, 1, 9, 9], [50, -5, 130, 40]], labels=[1, 1])
    assert result.boxes_xyxy[1].tolist() == [50, 0, 100, 40]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        look(picture, tasks="keypoint_detection", threshold=0.0, seed=1)  # detected boxes are cut without a word


@pytest.mark.parametrize("given", [{"threshold": 1.0}, {"boxes": [], "labels": []}, {"objects": []}])
def test_nothing_found(look, picture, given):
    result = look(picture, **given)
    assert result.objects == [] and len(result.captions) == 1
    assert result.masks.shape == (0, 60, 100) and result.keypoints_xy.shape == (0, 17, 2)
    assert result.boxes_xyxy.shape == (0, 4) and result.to_coco() == []
    assert result.draw().size[0] >= 100


def test_four_hundred_objects(look, picture):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (400, 2))
    result = look(
        picture, tasks=ALL[1:3], boxes=np.hstack([corners, corners + 15]), labels=[1] * 400, num_samples=2, max_points=3
    )
    assert result.masks.shape == (400, 60, 100) and result.masks.any(axis=(1, 2)).sum() > 100
    assert np.isfinite(result.keypoints_xy).all()


def test_lists_generators_and_workers(look, picture):
    options = {"tasks": "object_detection", "threshold": 0.0, "seed": 1}
    pictures = [noise_picture(40, 50, seed) for seed in range(5)]
    expected = [look(entry, **options).to_json() for entry in pictures]
    assert len(set(expected)) == 5
    assert [result.to_json() for result in look(pictures, **options)] == expected  # in their order
    assert [result.to_json() for result in look((entry for entry in pictures), **options)] == expected
    assert [result.to_json() for result in look(pictures, num_workers=1, **options)] == expected
    batches = look(pictures, batch_size=2, **options)
    assert [result.image.size for result in batches] == [entry.size for entry in pictures]
    assert look([], **options) == []


def test_options_of_the_pipeline_and_of_a_call(folder, picture):
    look = pipeline("pix2seq", model=folder, device="cpu", tasks="captioning", seed=1)
    assert look(picture).tasks == ("captioning",)
    assert look(picture).captions == look(picture).captions
    assert look(picture, tasks="object_detection").tasks == ("object_detection",)
    with pytest.raises(ValueError, match="unknown option 'treshold': known are tasks, threshold"):
        look(picture, treshold=0.5)
    for name, value in [("threshold", 2), ("num_samples", 0), ("ensemble_threshold", 0), ("max_points", 2)]:
        with pytest.raises(ValueError, match=f"{name} must"):
            look(picture, **{name: value})


@pytest.mark.parametrize("entry", [{"picture": 1}, 7, None])
def test_what_is_no_picture(look, entry):
    with pytest.raises(ValueError, match="picture"):
        look(entry)


def test_a_missing_file_is_named(look):
    with pytest.raises(OSError, match=r"nowhere\.jpg"):
        look("nowhere.jpg")


def test_a_model_that_was_built_and_not_loaded(picture):
    model = multitask_model(has_settings=False, max_instances_per_image=5)
    look = Pix2SeqPipeline(model, processor=multitask_processor(model.config), device="cpu")
    result = look(picture, threshold=0.0, seed=1, **BOXES)
    assert result.masks.shape[0] == 3 and len(result.captions) == 1
    assert look(picture, tasks="object_detection", max_objects=3, threshold=0.0).tasks == ("object_detection",)
    greedy = look(picture, generate_kwargs=GREEDY, **BOXES)
    assert len(greedy.objects) == 3


def test_another_skeleton(picture):
    model = multitask_model(keypoint_names=["head", "tail"], keypoint_skeleton=[(0, 1)], keypoint_labels=[18])
    look = Pix2SeqPipeline(model, processor=multitask_processor(model.config), device="cpu")
    result = look(picture, tasks="keypoint_detection", **BOXES)
    assert [found.keypoints is None for found in result.objects] == [True, False, True]
    assert [point.name for point in result.objects[1].keypoints] == ["head", "tail"]


def test_it_can_be_saved(look, picture, tmp_path):
    look.save_pretrained(tmp_path)
    again = pipeline("pix2seq", model=str(tmp_path), device="cpu")
    options = {"threshold": 0.0, "seed": 2}
    assert again(picture, **options).to_json() == look(picture, **options).to_json()


def test_boxes_as_they_were_written(look, picture):
    written = look(picture, tasks="object_detection", threshold=0.0, seed=2, cut_to_picture=False)
    assert len(written.objects) == look.model.config.max_instances_per_image
    boxes = written.boxes_xyxy
    assert (boxes[:, 2:] < boxes[:, :2]).any()
    complete = look(picture, threshold=0.0, seed=2, cut_to_picture=False)
    assert len(complete.objects) == len(boxes) and any(found.keypoints for found in complete.objects)


def test_configuration_of_these_tests():
    assert multitask_config().tasks == list(ALL)


def test_no_boxes_need_no_labels(look, picture):
    result = look(picture, tasks=ALL[1:3], boxes=[])
    assert result.objects == []
