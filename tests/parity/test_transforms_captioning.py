"""Colour jitter and the training transforms of captioning against the reference recordings."""

import json

import pytest
import torch
from recordings import IMAGE_TOLERANCE, difference, draws_of, load, part_of

from pix2seq_hf.data import photometric
from pix2seq_hf.data.photometric import ColorDraws, draw_color_jitter, jitter_colors
from pix2seq_hf.data.transforms import captioning_training_transforms

COLOR_TOLERANCE = 1e-6


class Replayed:
    """A generator that returns recorded draws."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def permutation(self, count):
        return next(self.draws)

    def uniform(self, low, high):
        return float(next(self.draws))

    def random(self):
        return float(next(self.draws))


@pytest.fixture(scope="module")
def recordings(golden_dir):
    return load(golden_dir / "tasks" / "transforms_train.npz", ("color_jitter/", "captioning/", "images/"))


def channels_first(array):
    return torch.from_numpy(array).permute(2, 0, 1)


@pytest.mark.parametrize("name", ["all", "all_2", "all_3", "strength_1", "skip_jitter", "skip_jitter_gray"])
def test_color_jitter(recordings, name, parity_report):
    case = part_of(recordings, f"color_jitter/{name}")
    replayed = Replayed(draws_of(case)[1:])  # the first decides with a rate of 1 that there is any jitter
    draws = draw_color_jitter(replayed, case["strength"].item())
    assert next(replayed.draws, None) is None
    found = jitter_colors(channels_first(recordings["color_jitter/in/image"]), draws)
    parity_report(f"colour jitter, {name}", difference(found, channels_first(case["out/image"])), COLOR_TOLERANCE)


def test_single_operations(recordings, parity_report):
    image = channels_first(recordings["color_jitter/in/image"])
    operations = part_of(recordings, "color_jitter/ops")
    assert len(operations) == 13
    for name, expected in operations.items():
        kind, _, factor = name.partition("_")
        found = getattr(photometric, f"adjust_{kind}")(image, float(factor)) if factor else photometric.to_gray(image)
        found = difference(found.clamp(0, 1), channels_first(expected))  # recorded as the jitter cuts it
        parity_report(f"colours, {name}", found, COLOR_TOLERANCE)


def test_training_transforms(recordings, parity_report):
    case = part_of(recordings, "captioning/default")
    config, draws = json.loads(case["config_json"].item()), draws_of(case)
    draws.pop(3)  # decides with a rate of 1 that there is any jitter
    record = {"image": channels_first(recordings[f"images/{case['image_id']}/pixels_uint8"])}
    replayed = Replayed(draws)
    transforms = captioning_training_transforms(
        config["target_size"], color_jitter_strength=config["color_jitter_strength"]
    ).transforms
    steps = sorted((key for key in case if key.startswith("step_")), key=lambda key: int(key.split("_")[1]))
    assert len(steps) == 5 and len(transforms) == 3
    for transform, step in zip(transforms, steps[2:], strict=True):  # the first three are one here
        record = transform(record, replayed)
        found = difference(record["image"], channels_first(case[step]))
        parity_report(f"captioning, {step.split('/')[0]}", found, IMAGE_TOLERANCE)
    assert next(replayed.draws, None) is None
    assert difference(record["image"], channels_first(case["out/image"])) <= IMAGE_TOLERANCE
    for field in ("unpadded_image_size", "crop_offset"):
        assert list(record[field]) == case[f"out/{field}"].tolist()


def test_no_steps_leave_the_image_alone(recordings):
    image = channels_first(recordings["color_jitter/in/image"])
    assert jitter_colors(image, ColorDraws((), False)).equal(image)
