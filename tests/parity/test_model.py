"""The network, its losses and its decoding against the recordings of the reference in golden/model."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from pix2seq_hf import Pix2SeqForConditionalGeneration
from pix2seq_hf.conversion import config_from_reference, convert_variables
from pix2seq_hf.conversion.checkpoint import find_checkpoint, read_model_variables
from pix2seq_hf.generation_pix2seq import top_logits
from pix2seq_hf.loss_pix2seq import sequence_loss, token_losses

TINY = ("vit", "resnet18")
SEEDED = ("vit-b_640_v3000", "resnet_640_v3000")


def build(config_path, variables) -> Pix2SeqForConditionalGeneration:
    config = config_from_reference(json.loads(config_path.read_text()))
    model = Pix2SeqForConditionalGeneration(config)
    model.load_state_dict(convert_variables(variables, config))
    return model.eval()


def largest(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return np.abs(ours.numpy() - theirs).max()


@pytest.fixture(scope="module", params=TINY)
def tiny(request, golden_dir):
    pytest.importorskip("tensorflow")
    folder = golden_dir / "model" / "tiny" / request.param
    model = build(folder / "config.json", read_model_variables(find_checkpoint(folder)))
    golden = dict(np.load(folder / "golden.npz"))
    pixel_values = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    return request.param, model, pixel_values, golden


@torch.no_grad()
def test_tiny_forward(tiny, parity_report):
    name, model, pixel_values, golden = tiny
    output = model(pixel_values, decoder_input_ids=torch.from_numpy(golden["seq"]))
    parity_report(f"tiny {name} encoded", largest(output.encoder_last_hidden_state, golden["encoded"]), 1e-4)
    parity_report(f"tiny {name} logits", largest(output.logits, golden["logits"]), 1e-4)
    many = model(pixel_values, decoder_input_ids=torch.from_numpy(golden["multi_seq"]))
    parity_report(f"tiny {name} logits, 3 sequences a picture", largest(many.logits, golden["multi_logits"]), 1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_tiny_greedy_decoding(tiny, parity_report, implementation):
    name, model, pixel_values, golden = tiny
    model.set_attn_implementation(implementation)
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(
        pixel_values, decoder_input_ids=torch.from_numpy(golden["greedy_prompt"]), max_new_tokens=20, **settings
    )
    assert output.sequences[:, 1:].tolist() == golden["greedy_tokens"].tolist()
    logits = torch.stack(output.logits, 1)
    parity_report(f"tiny {name} greedy logits, {implementation}", largest(logits, golden["greedy_logits"]), 1e-4)

    prompts = torch.from_numpy(golden["inst_prompt"])  # three prompts of six tokens for each picture
    output = model.generate(pixel_values, decoder_input_ids=prompts, max_new_tokens=15, **settings)
    assert output.sequences[:, 6:].tolist() == golden["inst_tokens"].tolist()
    logits = torch.stack(output.logits, 1)[:, :, ::37]
    parity_report(f"tiny {name} prompt logits, {implementation}", largest(logits, golden["inst_logits_slice"]), 1e-4)

    settings |= {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    output = model.generate(pixel_values, decoder_input_ids=prompts, max_new_tokens=15, **settings)
    assert output.sequences[:, 6:].tolist() == golden["inst_tokens_2_samples"].tolist()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", SEEDED)
def test_full_size_networks(golden_dir, case, parity_report):
    spec = importlib.util.spec_from_file_location("seeded_weights", golden_dir / "seeded_weights.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    folder = golden_dir / "model" / "seeded" / case
    meta, golden = json.loads((folder / "meta.json").read_text()), np.load(folder / "golden.npz")
    shapes = json.loads((folder / "variables.json").read_text())
    model = build(
        folder / "config.json",
        {name: seeded.seeded_array(name, tuple(shape), meta["salt"]) for name, shape in shapes},
    )
    pixel_values = torch.from_numpy(seeded.seeded_images(tuple(meta["images_shape"]), meta["salt"]))
    pixel_values = pixel_values.permute(0, 3, 1, 2)
    output = model(pixel_values, decoder_input_ids=torch.from_numpy(golden["seq"]))
    encoded, logits = output.encoder_last_hidden_state, output.logits
    deviation = logits.std().item()
    parity_report(f"{case} encoded", largest(encoded[:, ::97, ::13], golden["encoded_slice"]), 1e-3)
    parity_report(
        f"{case} logits / deviation", largest(logits[:, :, ::37], golden["logits_slice"]) / deviation, 1e-3
    )
    for name, ours in (("encoded", encoded), ("logits", logits)):
        theirs = golden[f"{name}_norm"]
        parity_report(f"{case} norm of {name}, relative", abs(ours.double().norm().item() / theirs - 1), 1e-4)

    output = model.generate(
        pixel_values, do_sample=False, max_new_tokens=10, return_dict_in_generate=True, output_logits=True
    )
    assert output.sequences[:, 1:].tolist() == golden["greedy_tokens"].tolist()
    logits = torch.stack(output.logits, 1)[:, :, ::37]
    parity_report(
        f"{case} greedy logits / deviation", largest(logits, golden["greedy_logits_slice"]) / deviation, 1e-3
    )


@pytest.mark.parametrize("loss_type", ["xent", "xent@0.1", "focal@2", "logistic"])
def test_losses(golden_dir, parity_report, loss_type):
    golden = np.load(golden_dir / "model" / "losses.npz")
    logits = torch.from_numpy(golden["logits"]).requires_grad_()
    labels, weights = torch.from_numpy(golden["target_seq"]), torch.from_numpy(golden["token_weights"])
    losses = token_losses(logits, labels, loss_type)
    # Relative above 1: the logistic losses reach 143, where float32 itself steps by 1.5e-5.
    theirs = golden[loss_type]
    difference = np.abs(losses.detach().numpy() - theirs) / np.maximum(1, np.abs(theirs))
    parity_report(f"{loss_type} token losses", difference.max(), 1e-5)
    mean = sequence_loss(logits, labels, weights, loss_type)
    parity_report(f"{loss_type} mean", abs(mean.item() - golden[f"{loss_type}/mean"]), 1e-5)
    without_padding = sequence_loss(logits, labels, weights * (labels != 0), loss_type)
    difference = abs(without_padding.item() - golden[f"{loss_type}/mean_notpad"])
    parity_report(f"{loss_type} mean without padding", difference, 1e-5)
    mean.backward()
    parity_report(f"{loss_type} gradient", largest(logits.grad, golden[f"{loss_type}/grad"]), 1e-5)


def test_truncation_of_logits(golden_dir, parity_report):
    golden = np.load(golden_dir / "model" / "top_logits.npz")
    logits = torch.from_numpy(golden["logits"])
    for name in golden.files:
        if name != "logits":
            k, p = name[1:].split("_p")
            parity_report(f"top_logits {name}", largest(top_logits(logits, int(k), float(p)), golden[name]))
