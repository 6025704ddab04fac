"""Seeds of pictures: what is drawn for one depends neither on the batch nor on torch's generator."""

import pytest
import torch

from pix2seq_hf.decoding_pix2seq import draw_tokens, draw_uniform
from tiny_models import make_pictures
from tiny_multitask import multitask_model

SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def model():
    return multitask_model()


def sequences(model, pictures, seeds, task="object_detection", **options):
    prompts = {}
    if task in ("instance_segmentation", "keypoint_detection"):
        number = {"instance_segmentation": 11, "keypoint_detection": 12}[task]
        prompts["decoder_input_ids"] = torch.tensor([number, 1100, 1200, 1500, 1600, 101]).repeat(len(pictures), 1)
    return model.generate(pixel_values=pictures, task=task, seeds=seeds, max_new_tokens=30, **prompts, **options)


@pytest.mark.parametrize("task", ["object_detection", "instance_segmentation", "keypoint_detection", "captioning"])
def test_a_picture_alone_gets_what_it_gets_in_a_batch(model, task):
    pictures = make_pictures(3, height=48, width=64)
    choices = {} if task == "instance_segmentation" else {"top_p": 1.0}
    together = sequences(model, pictures, SEEDS, task, **choices)
    samples = len(together["sequences"]) // 3
    for index, seed in enumerate(SEEDS):
        torch.manual_seed(index)
        alone = sequences(model, pictures[index : index + 1], [seed], task, **choices)
        for name in ("sequences", "class_labels", "is_invisible"):
            if name in alone:
                rows = together[name][index * samples : (index + 1) * samples]
                width = alone[name].shape[1]  # a batch ends with its longest row
                assert rows[:, :width].equal(alone[name]) and not rows[:, width:].any()
    other = sequences(model, pictures, [8, 9, 10], task, **choices)["sequences"]
    assert other.shape != together["sequences"].shape or not other.equal(together["sequences"])


def test_torch_generator_is_left_alone(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sequences(model, make_pictures(1, height=48, width=64), [3])
    assert torch.get_rng_state().equal(before)


def test_draws_have_the_right_frequencies_and_never_hit_what_is_forbidden():
    logits = torch.tensor([0.0, float("-inf"), 1.0, 0.5, float("-inf")]).expand(40_000, -1)
    drawn = draw_tokens(logits, draw_uniform([0], 40_000, 1)[:, 0, 0])
    frequencies = torch.bincount(drawn, minlength=5) / len(drawn)
    assert (frequencies - logits[0].softmax(-1)).abs().max() < 0.01 and not frequencies[[1, 4]].any()
    assert draw_tokens(logits[:2], torch.tensor([0.0, 1 - 2**-20])).tolist() == [0, 3]


def test_wrong_seeds(model):
    pictures = make_pictures(3, height=48, width=64)
    with pytest.raises(ValueError, match="2 seeds were given for a batch of 3 sequences"):
        sequences(model, pictures, [1, 2])
    with pytest.raises(ValueError, match="leave out beams"):
        sequences(model, pictures, SEEDS, num_beams=2)
    with pytest.raises(ValueError, match="without outputs beside the sequences"):
        sequences(model, pictures, SEEDS, output_scores=True)
    with pytest.raises(ValueError, match="name it"):
        model.generate(pixel_values=pictures, decoder_input_ids=torch.full((3, 1), 77), seeds=SEEDS)
