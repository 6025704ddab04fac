"""The network under combinations of options that no released checkpoint has, against the reference's own outputs.

`data/reference_options.npz` was recorded from the reference implementation (TensorFlow 2.15.1, CPU, float32), one tiny
network per combination: odd, non-square and one-row pictures, class token, learned positions, separate embeddings,
projection modes, c3, c4, dc5, selective kernels, basic blocks, fractional widths. Weights and pictures come from the
functions below; of the outputs slices are stored.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pix2seq_hf.conversion import config_from_reference, convert_variables
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration

RECORDED = np.load(Path(__file__).parent / "data" / "reference_options.npz")
CASES = sorted({name.split("/")[0] for name in RECORDED.files})


def weight(name, shape):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"extra|{name}".encode())))
    values = rng.standard_normal(shape)
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "kernel":
        is_per_head = any(part in name for part in ("_query", "_key", "_value"))
        values = values * (1 / np.sqrt(shape[0] if is_per_head else math.prod(shape[:-1])))
        if "_query_dense" in name:
            values = values * 2
        if "stem_conv/" in name or "stem_projection" in name:
            values = values / 20
    elif leaf == "gamma":
        values = 1 + 0.2 * values
    elif leaf in ("beta", "moving_mean"):
        values = 0.2 * values
    elif leaf == "moving_variance":
        values = rng.uniform(0.3, 2, shape)
    elif leaf == "bias":
        values = values * (0.01 if "stem" in name else 0.1)
    else:
        values = values * (1.5 if leaf.endswith("seq_pos_embedding") else 0.3)
    return values.astype(np.float32)


def load_case(case):
    config_json = json.loads(str(RECORDED[f"{case}/config_json"]))
    config = config_from_reference(config_json)
    lines = [line.rsplit(" ", 1) for line in str(RECORDED[f"{case}/variables"]).splitlines()]
    variables = {name: weight(name, tuple(map(int, shape.split(",")))) for name, shape in lines}
    model = Pix2SeqForConditionalGeneration(config).eval()
    model.load_state_dict(convert_variables(variables, config), strict=True)
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    images = rng.random((2, *config_json["model"]["image_size"], 3)).astype(np.float32)
    return model, torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_equal_the_references(case, parity_report):
    model, pixel_values = load_case(case)
    recorded = {name: RECORDED[f"{case}/{name}"] for name in ("seq", "multi_seq", "encoded", "logits", "multi_logits")}
    sequences, many = (torch.from_numpy(recorded[name].astype(np.int64)) for name in ("seq", "multi_seq"))

    encoded = model.get_encoder()(pixel_values).last_hidden_state.numpy()
    parity_report(f"options {case} encoded", np.abs(encoded[:, ::3, ::5] - recorded["encoded"]).max(), 1e-4)
    logits = model(pixel_values=pixel_values, decoder_input_ids=sequences).logits.numpy()
    parity_report(f"options {case} logits", np.abs(logits[:, :, ::61] - recorded["logits"]).max(), 1e-4)
    logits = model(pixel_values=pixel_values, decoder_input_ids=many).logits.numpy()
    assert logits.shape[:2] == (6, 10)
    parity_report(f"options {case} many", np.abs(logits[:, -1, ::61] - recorded["multi_logits"]).max(), 1e-4)

    prompt = torch.full((2, 1), 10)
    greedy = model.generate(pixel_values=pixel_values, decoder_input_ids=prompt, max_new_tokens=8, do_sample=False)
    greedy = greedy if isinstance(greedy, torch.Tensor) else greedy.sequences
    assert np.array_equal(greedy[:, 1:].numpy(), RECORDED[f"{case}/greedy_tokens"])
