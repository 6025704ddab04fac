"""streaming.py: objects come one by one while the model still writes."""

import threading
import time

import pytest
import torch

from pix2seq_hf import ObjectStreamer, Pix2SeqPipeline, TaskOptions
from pix2seq_hf.streaming import StreamClosedError, stream_objects
from tiny_model import noise_picture
from tiny_multitask import multitask_model, multitask_processor

NUM_TOKENS = 5 * 24


@pytest.fixture(scope="module")
def look():
    model = multitask_model()
    return Pix2SeqPipeline(model, processor=multitask_processor(model.config), device="cpu")


@pytest.fixture
def picture():
    return noise_picture(60, 100)


@pytest.fixture
def steps(look, monkeypatch):
    """Grows by one with every decoding step; steps take at least three milliseconds."""
    steps = []

    def count(module, args, kwargs):
        steps.append(None)
        time.sleep(0.003)

    hook = look.model.model.decoder.register_forward_pre_hook(count, with_kwargs=True)
    yield steps
    hook.remove()


def entries(objects):
    return [found.to_dict() for found in objects]


@pytest.mark.parametrize("options", [{}, {"threshold": 0.1}, {"classes": [90]}, {"cut_to_picture": False}])
def test_the_objects_of_the_whole_run_in_its_order(look, picture, options):
    options = {"threshold": 0.0, "seed": 1, **options}
    expected = look(picture, tasks="object_detection", **options).objects
    assert len(expected) > 2
    assert entries(look.stream(picture, **options)) == entries(expected)


def test_objects_come_while_others_are_written(look, picture, steps):
    stream = look.stream(picture, threshold=0.0, seed=1)
    assert not steps  # nothing happens before the first one is wanted
    seen = [len(steps) for _ in stream]
    assert len(steps) == NUM_TOKENS
    assert seen[0] < NUM_TOKENS / 2 and seen == sorted(seen) and len(set(seen)) > 2


def test_stopping_early_stops_the_model(look, picture, steps):
    threads = threading.active_count()
    stream = look.stream(picture, threshold=0.0, seed=1)
    next(stream)
    stream.close()
    assert len(steps) < NUM_TOKENS and threading.active_count() == threads
    written = len(steps)
    time.sleep(0.05)
    assert len(steps) == written


def test_complete_objects(look, picture):
    options = {"tasks": "all", "threshold": 0.0, "seed": 2}
    expected = look(picture, **options).objects
    assert any(found.keypoints for found in expected)
    assert entries(look.stream(picture, **options)) == entries(expected)


def test_masks_come_in_groups(look, picture, steps):
    boxes = {"boxes": [[5, 4, 60, 50]] * 6, "labels": [1] * 6}
    stream = look.stream(picture, tasks="instance_segmentation", max_sequences=2, num_samples=1, **boxes)
    next(stream)
    first = len(steps)
    assert len(list(stream)) == 5 and len(steps) > first


def test_boxes_that_the_user_gives(look, picture):
    stream = look.stream(picture, boxes=[[5, 4, 60, 50]], labels=["dog"])
    assert [found.label for found in stream] == ["dog"]
    assert list(look.stream(picture, boxes=[], labels=[], tasks="all")) == []


def test_nothing_found(look, picture):
    assert list(look.stream(picture, threshold=1.0)) == []
    assert list(look.stream(picture, threshold=1.0, tasks="all")) == []


def test_wrong_options_are_named_at_once(look, picture):
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        look.stream(picture, classes=["cat"])
    with pytest.raises(ValueError, match="unknown option"):
        look.stream(picture, treshold=0.5)
    with pytest.raises(ValueError, match="captions are no objects"):
        look.stream(picture, tasks="captioning")


def test_errors_come_out_where_objects_do(look, picture, monkeypatch):
    monkeypatch.setattr(look.model, "generate", lambda **kwargs: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        list(stream_objects(look.model, look.processor, picture, TaskOptions(tasks="object_detection")))


@pytest.mark.parametrize("options", [{}, {"grammar": None}, {"stop_when_noise": True}, {"output_scores": True}])
def test_streamer_of_a_batch(look, options):
    pictures = [noise_picture(60, 100), noise_picture(30, 30, seed=1)]
    sizes = [(60, 100), (30, 30)]
    inputs = look.processor(images=pictures, task="object_detection", return_tensors="pt")
    streamer = ObjectStreamer(look.processor, sizes, cut_to_picture=False)
    torch.manual_seed(0)
    output = look.model.generate(**inputs, streamer=streamer, **options)
    found = list(streamer)
    results = look.processor.post_process_generation(output, target_sizes=sizes)
    for index, result in enumerate(results):
        rows = [entry for picture, entry in found if picture == index]
        assert [entry.label_id for entry in rows] == result["labels"].tolist()
        assert [entry.score for entry in rows] == pytest.approx(result["scores"].tolist())
        boxes = torch.tensor([entry.box_xyxy for entry in rows]).reshape(-1, 4)
        assert torch.allclose(boxes, result["boxes"], atol=1e-4)
    assert list(streamer) == []  # it is over


def test_rows_that_have_ended_write_no_objects(look):
    streamer = ObjectStreamer(look.processor, [(60, 100)] * 2, cut_to_picture=False)
    tokens = torch.tensor([[1000, 1000, 1500, 1500], [0, 0, 0, 0]])
    streamer.put_objects(3, torch.tensor([0, 1]), tokens, torch.tensor([1, 1]), torch.tensor([0.5, 0.5]))
    streamer.end()
    [(picture, found)] = streamer
    assert picture == 0 and found.label == "person" and found.score == 0.5
    assert found.box_xyxy == pytest.approx((0, 0, 50.05, 37.93), abs=0.1)


def test_closed_streamer(look):
    streamer = ObjectStreamer(look.processor, [(60, 100)])
    streamer.close()
    with pytest.raises(StreamClosedError):
        streamer.put(torch.tensor([0]))
    streamer.run(lambda: streamer.put(torch.tensor([0])))  # no error for whoever closed it
    assert list(streamer) == []
