"""The fast loop writes what the library's loop writes: on a thousand random sequences of all tasks."""

import random

import pytest
import torch
from transformers import StoppingCriteria

from pix2seq_hf import TASKS, linear_pix2seq
from tiny_multitask import multitask_model

NUM_SEQUENCES = 1000
PER_CALL = 24


class NeverStop(StoppingCriteria):
    """Unknown to the fast loop, so that the library's has to run."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros_like(input_ids[:, 0], dtype=torch.bool)


def random_question(rng, task, config):
    """Arguments of `generate` for some pictures, `PER_CALL` sequences or a few less."""
    num_pictures = rng.randint(1, 6)
    options = {"pixel_values": torch.rand(num_pictures, 3, *config.image_size), "task": task}
    if TASKS[task].needs_boxes:
        num_objects = PER_CALL // num_pictures
        corners = torch.randint(1000, 3000, (num_pictures, num_objects, 4))
        labels = torch.tensor([101, 118, 190])[torch.randint(3, (num_pictures, num_objects, 1))]
        prompt = torch.full_like(labels, TASKS[task].prompt_id)
        options["decoder_input_ids"] = torch.cat([prompt, corners, labels], -1)
    if task == "object_detection":
        options["max_objects"] = rng.randint(1, 5)
        options["classes"] = rng.choice([None, ["dog"], [1, 90]])
        options["stop_when_noise"] = rng.random() < 0.5
    if task == "instance_segmentation":
        options["max_points"] = rng.randint(3, 8)
    return options


def test_a_thousand_sequences():
    rng = random.Random(0)
    torch.manual_seed(0)
    models = [multitask_model(seed, decoder_num_hidden_layers=1 + seed % 3) for seed in range(6)]
    num_sequences, seen = 0, set()
    while num_sequences < NUM_SEQUENCES:
        model, task = rng.choice(models), rng.choice(list(TASKS))
        options = random_question(rng, task, model.config)
        options |= {"do_sample": False, "num_return_sequences": 1, "return_dict_in_generate": True}
        fast = model.generate(**options)
        # Whoever wants logits gets all of them; else the library's loop, too, computes those that are allowed.
        stock = model.generate(**options, stopping_criteria=[NeverStop()], output_logits=rng.random() < 0.5)
        assert torch.equal(fast.sequences, stock.sequences), options
        for name in ("class_labels", "is_invisible"):
            assert fast.get(name) is None or torch.equal(fast[name], stock[name])
        for name in ("class_scores", "token_scores"):
            if fast.get(name) is not None:
                torch.testing.assert_close(fast[name], stock[name], rtol=0, atol=1e-5)
        num_sequences += len(fast.sequences)
        seen |= {(task, *row) for row in fast.sequences.tolist()}
    assert len(seen) > NUM_SEQUENCES / 2  # not always the same


def test_the_librarys_loop_computes_what_may_be_written():
    torch.manual_seed(0)
    model = multitask_model(0)
    sizes, head = [], model.lm_head.forward
    model.lm_head.forward = lambda hidden_states: sizes.append(hidden_states.shape) or head(hidden_states)
    options = {"pixel_values": torch.rand(2, 3, *model.config.image_size), "task": "object_detection", "max_objects": 3}
    options |= {"do_sample": False, "return_dict_in_generate": True, "stopping_criteria": [NeverStop()]}
    some = model.generate(**options)
    assert len(sizes) == 3  # at the classes, whose scores are probabilities of the whole vocabulary
    scored = model.generate(**options, output_scores=True)
    assert len(sizes) == 6
    every = model.generate(**options, output_logits=True, output_scores=True)
    assert len(sizes) == 6 + 15
    assert torch.equal(some.sequences, every.sequences) and torch.equal(some.class_scores, every.class_scores)
    assert all(logits.isfinite().all() for logits in every.logits)
    for ours, whole in zip(scored.scores, every.scores, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM")
@pytest.mark.parametrize("task", TASKS)
def test_int8_is_near_in_all_tasks_and_can_be_left_again(task, monkeypatch):
    torch.manual_seed(0)
    model = multitask_model(0).eval()
    options = random_question(random.Random(1), task, model.config)
    options |= {"do_sample": False, "num_return_sequences": 1, "return_dict_in_generate": True}
    exact = model.generate(**options)
    made, make = [], linear_pix2seq.Int8Weight.__init__
    monkeypatch.setattr(linear_pix2seq.Int8Weight, "__init__", lambda *args: made.append(args) or make(*args))
    rounded = model.use_int8().generate(**options)
    assert len(made) >= 5 * len(model.model.decoder.layers)  # it was computed that way
    assert rounded.sequences.shape[0] == exact.sequences.shape[0]
    inputs = {"pixel_values": options["pixel_values"], "decoder_input_ids": exact.sequences[:, :-1], "use_cache": False}
    with torch.no_grad():
        near = model(**inputs).logits
        far = model.use_int8(False)(**inputs).logits
    assert 0 < (near - far).std() < 0.05 * far.std()
    assert torch.equal(model.generate(**options).sequences, exact.sequences)
