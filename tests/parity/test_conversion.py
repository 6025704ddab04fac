"""Recorded checkpoints of the reference through the whole of `pix2seq convert`, and its names at full size."""

import json

import numpy as np
import pytest
import torch

from bucket_server import serve_bucket
from pix2seq_hf import Pix2SeqForConditionalGeneration, cli
from pix2seq_hf.conversion import config_from_reference, convert_variables, revert_variables
from pix2seq_hf.conversion.checkpoint import find_checkpoint, read_model_variables
from pix2seq_hf.conversion.names import list_variables
from pix2seq_hf.conversion.variables import expected_shapes

TINY = ("vit", "resnet18")
SEEDED = ("vit-b_640_v3000", "resnet_640_v3000")


def logits_difference(folder, golden):
    model = Pix2SeqForConditionalGeneration.from_pretrained(folder).eval()
    pixel_values = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(pixel_values=pixel_values, decoder_input_ids=torch.from_numpy(golden["seq"])).logits
    return np.abs(logits.numpy() - golden["logits"]).max()


@pytest.mark.parametrize("case", TINY)
def test_a_converted_checkpoint_gives_the_references_logits(golden_dir, tmp_path, parity_report, case):
    pytest.importorskip("tensorflow")
    folder = golden_dir / "model" / "tiny" / case
    assert cli.main(["convert", "--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 0
    golden = np.load(folder / "golden.npz")
    parity_report(f"converted {case} logits", logits_difference(tmp_path / "out", golden), 1e-4)


def test_a_downloaded_checkpoint_gives_the_references_logits(golden_dir, tmp_path, parity_report, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, name = golden_dir / "model" / "tiny" / "vit", "coco_det_finetune/vit_b_640x640"
    with serve_bucket() as bucket:
        for path in folder.glob("c*"):
            bucket.files[f"/bucket/{name}/{path.name}"] = path.read_bytes()
        data = f"/bucket/{name}/ckpt-2.data-00000-of-00001"
        bucket.plan[data] = [("cut", 1_000_000), ("cut", 1_000_000), None]
        arguments = ["--checkpoint", name, "--base-url", bucket.url, "--cache-dir", str(tmp_path / "cache")]
        assert cli.main(["convert", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert [wanted for path, wanted in bucket.requests if path == data] == [None, "bytes=1000000-", "bytes=2000000-"]
    golden = np.load(folder / "golden.npz")
    parity_report("downloaded vit logits", logits_difference(tmp_path / "out", golden), 1e-4)


@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("state", ["initial", "final"])
def test_checkpoints_of_training_convert_and_revert(golden_dir, case, state):
    pytest.importorskip("tensorflow")
    folder = golden_dir / "model" / "train" / case
    config = config_from_reference(json.loads((folder / "initial" / "config.json").read_text()))
    variables = read_model_variables(find_checkpoint(folder / state))
    back = revert_variables(convert_variables(variables, config), config)
    assert back.keys() == variables.keys()
    assert all(np.array_equal(back[name], variables[name]) for name in variables)


@pytest.mark.parametrize("case", SEEDED)
def test_full_size_networks_have_the_references_names_and_shapes(golden_dir, case):
    folder = golden_dir / "model" / "seeded" / case
    config = config_from_reference(json.loads((folder / "config.json").read_text()))
    recorded = {name: tuple(shape) for name, shape in json.loads((folder / "variables.json").read_text())}
    shapes = expected_shapes(config)
    rows = list_variables(config)
    assert {row.reference for row in rows} == recorded.keys()
    for row in rows:
        like = np.broadcast_to(np.float32(0), recorded[row.reference])  # takes no memory
        assert row.to_ours(like).shape == shapes[row.ours], row


def test_the_converted_tokenizer_gives_the_references_ids(golden_dir):
    pytest.importorskip("sentencepiece")
    from pix2seq_hf.conversion.tokenizer import convert_tokenizer

    tokenizer = convert_tokenizer(golden_dir / "tasks" / "tokenizer_small.model")
    golden = np.load(golden_dir / "tasks" / "serialization_captioning.npz")
    splits, values = golden["tokenizer/ids_row_splits"], golden["tokenizer/ids_values"]
    assert len(tokenizer) == int(golden["tokenizer/vocab_size"])
    for row, text in enumerate(golden["tokenizer/strings"]):
        assert tokenizer(str(text)).input_ids == values[splits[row] : splits[row + 1]].tolist()
