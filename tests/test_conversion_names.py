"""The table of names in both directions, against names and shapes recorded from the reference's networks.

`data/reference_options.npz` was recorded from the reference implementation with TensorFlow 2.15.1: one tiny network per
combination of options (see `test_reference_options.py`).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pix2seq_hf.conversion import config_from_reference, convert_variables, revert_variables
from pix2seq_hf.conversion.names import KEY_SUFFIX, LAYOUTS, list_variables
from pix2seq_hf.conversion.variables import expected_shapes
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration

RECORDED = np.load(Path(__file__).parent / "data" / "reference_options.npz")
CASES = sorted({name.split("/")[0] for name in RECORDED.files})


def config_of(case):
    return config_from_reference(json.loads(str(RECORDED[f"{case}/config_json"])))


def recorded_shapes(case):
    lines = [line.rsplit(" ", 1) for line in str(RECORDED[f"{case}/variables"]).splitlines()]
    return {name: tuple(map(int, shape.split(","))) for name, shape in lines}


def random_variables(case):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in recorded_shapes(case).items()}


@pytest.fixture
def vit():
    case = "vit_class_token_learned_separate_linear_p"
    return config_of(case), random_variables(case)


@pytest.mark.parametrize("case", CASES)
def test_every_variable_of_the_reference_has_its_tensor(case):
    config = config_of(case)
    rows = list_variables(config)
    assert sorted(row.reference for row in rows) == sorted(recorded_shapes(case))
    ours = sorted(row.ours for row in rows)
    assert len(set(ours)) == len(ours)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert sorted(ours + tied) == sorted(expected_shapes(config))


@pytest.mark.parametrize("case", CASES)
def test_variables_survive_the_way_there_and_back(case):
    config, variables = config_of(case), random_variables(case)
    state_dict = convert_variables(variables, config)
    Pix2SeqForConditionalGeneration(config).load_state_dict(state_dict, strict=True)
    back = revert_variables(state_dict, config)
    assert back.keys() == variables.keys()
    assert all(np.array_equal(back[name], variables[name]) for name in variables)


@pytest.mark.parametrize(
    ("layout", "shape", "num_heads"),
    [("same", (5,), 0), ("same", (5, 3), 0), ("dense", (5, 3), 0), ("conv", (2, 3, 4, 5), 0)]
    + [("to_heads", (6, 2, 5), 2), ("heads", (2, 5), 2), ("from_heads", (2, 5, 6), 2)],
)
def test_layouts_are_undone(layout, shape, num_heads):
    array = np.random.default_rng(0).random(shape)
    there, back = LAYOUTS[layout]
    assert np.array_equal(back(there(array), num_heads), array)


def test_layouts_compute_what_keras_computes():
    rng = np.random.default_rng(0)
    inputs = rng.random((4, 6))
    query, output, dense = rng.random((6, 2, 5)), rng.random((2, 5, 3)), rng.random((6, 7))
    per_head = np.einsum("ni,ihk->nhk", inputs, query)
    flat = inputs @ LAYOUTS["to_heads"][0](query).T
    np.testing.assert_allclose(flat, per_head.reshape(4, 10))
    np.testing.assert_allclose(flat @ LAYOUTS["from_heads"][0](output).T, np.einsum("nhk,hko->no", per_head, output))
    np.testing.assert_allclose(inputs @ LAYOUTS["dense"][0](dense).T, inputs @ dense)
    image, kernel = rng.random((1, 3, 4, 2)), rng.random((3, 4, 2, 5))  # one window of height 3 and width 4
    ours = torch.nn.functional.conv2d(
        torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(LAYOUTS["conv"][0](kernel).copy())
    )
    np.testing.assert_allclose(ours.flatten(), np.einsum("bhwi,hwio->o", image, kernel))


def test_keys_may_keep_the_suffix_of_the_checkpoint(vit):
    config, variables = vit
    plain = convert_variables(variables, config)
    suffixed = convert_variables({name + KEY_SUFFIX: array for name, array in variables.items()}, config)
    assert all(torch.equal(plain[name], suffixed[name]) for name in plain)


def test_tensors_are_copies(vit):
    config, variables = vit
    state_dict = convert_variables(variables, config)
    variables["model/encoder/output_ln/gamma"][:] = 7
    assert (state_dict["model.encoder.norm.weight"] != 7).all()


def test_left_over_and_missing_variables_are_named(vit):
    config, variables = vit
    gamma = variables.pop("model/encoder/output_ln/gamma")
    variables["model/encoder/other_ln/gamma"] = gamma
    with pytest.raises(
        ValueError, match=r"lacks 'model/encoder/output_ln/gamma'.*holds 'model/encoder/other_ln/gamma'"
    ):
        convert_variables(variables, config)


def test_left_over_and_missing_tensors_are_named(vit):
    config, variables = vit
    state_dict = convert_variables(variables, config)
    state_dict["model.other.weight"] = state_dict.pop("model.decoder.norm.bias")
    with pytest.raises(ValueError, match=r"lacks 'model\.decoder\.norm\.bias'.*holds 'model\.other\.weight'"):
        revert_variables(state_dict, config)


@pytest.mark.parametrize("shape", [(7,), (24, 1)])
def test_a_wrong_shape_is_named(vit, shape):
    config, variables = vit
    variables["model/proj_ln/beta"] = np.zeros(shape, dtype=np.float32)
    with pytest.raises(ValueError, match=r"'model/proj_ln/beta' has the shape \("):
        convert_variables(variables, config)


def test_a_wrong_number_of_axes_is_named(vit):
    config, variables = vit
    variables["model/proj/kernel"] = variables["model/proj/kernel"][None]
    with pytest.raises(ValueError, match=r"'model/proj/kernel' has the shape \(1, 32, 24\); expected 2 axes"):
        convert_variables(variables, config)


def test_a_wrong_tensor_shape_is_named(vit):
    config, variables = vit
    state_dict = convert_variables(variables, config)
    state_dict["model.encoder.norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'model\.encoder\.norm\.weight' has the shape \(3,\)"):
        revert_variables(state_dict, config)


def test_tied_embeddings_have_both_names_and_may_not_differ():
    config, variables = config_of("c4_50_odd"), random_variables("c4_50_odd")
    state_dict = convert_variables(variables, config)
    assert state_dict["lm_head.weight"] is state_dict["model.decoder.token_embeddings.weight"]
    state_dict["lm_head.weight"] = state_dict["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        revert_variables(state_dict, config)
