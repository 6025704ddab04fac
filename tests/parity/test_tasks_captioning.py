"""Caption sequences and their decoding against the reference recordings."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf.task_captioning import Captioning, build_targets, caption_tokens, decode_text
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary

CASES = ["default", "len_40", "len_40_drop_0.5", "len_40_eos_1.0", "edge_values"]
TASK = Captioning()
VOCABULARY = Pix2SeqVocabulary(vocab_size=35000)
END = 3001


def load(golden_dir, name):
    with np.load(golden_dir / "tasks" / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def serialization(golden_dir):
    return load(golden_dir, "serialization_captioning")


@pytest.fixture(scope="module")
def tokenizer(golden_dir):
    pytest.importorskip("sentencepiece")
    from pix2seq_hf.conversion.tokenizer import convert_tokenizer

    return convert_tokenizer(golden_dir / "tasks" / "tokenizer_small.model")


def case_of(arrays, case):
    found = {
        key.removeprefix(f"{case}/"): value.item() if value.dtype.kind == "U" else torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith(f"{case}/")
    }
    return found, json.loads(found["config_json"])


def difference(ours, theirs):
    """Largest absolute difference; infinite for other shapes or types."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0


def test_every_case_is_replayed(serialization):
    assert {key.split("/")[0] for key in serialization} == {*CASES, "tokenizer"}


@pytest.mark.parametrize("name", CASES)
def test_serialization(serialization, name, parity_report):
    case, config = case_of(serialization, name)
    assert config["vocab_id"] == TASK.prompt_id and config["text_vocab_shift"] == VOCABULARY.text_vocab_shift
    targets = build_targets(
        case["captions"], VOCABULARY, END, case.get("drop_uniform"), config["eos_token_weight"],
        config["input_seq_drop_rate"],
    )  # fmt: skip
    ours = {
        "input_seq": targets.decoder_input_ids, "target_seq": targets.labels, "token_weights": targets.label_weights,
    }  # fmt: skip
    parity_report(f"caption sequence, {name}", max(difference(ours[key], case[key]) for key in ours))


@pytest.mark.parametrize("name", [case for case in CASES if case != "edge_values"])
def test_targets_of_captions(serialization, golden_dir, tokenizer, name, parity_report):
    case, config = case_of(serialization, name)
    captions = json.loads((golden_dir / "tasks" / "captions_raw.json").read_text())
    worst = 0.0
    for row, image_id in enumerate(case["image_ids"].tolist()):
        record = {"image_id": image_id, "captions": captions[str(image_id)]}
        targets = TASK.targets(
            record, VOCABULARY, tokenizer=tokenizer, max_seq_len=config["max_seq_len"],
            captions_per_image=config["captions_per_image"], eos_token_weight=config["eos_token_weight"],
            input_seq_drop_rate=0,
        )  # fmt: skip
        worst = max(worst, difference(targets.labels, case["response_seq"][row]))
        worst = max(worst, difference(targets.label_weights, case["token_weights"][row]))
        first = caption_tokens(captions[str(image_id)][0], tokenizer, VOCABULARY, config["max_seq_len"])
        worst = max(
            worst, difference(first, case["response_seq_eval"][row]), difference(first, case["captions_eval"][row])
        )
        assert TASK.prompt(VOCABULARY).expand(5, -1).equal(case["prompt_seq"][row])
    parity_report(f"captions to sequences, {name}", worst)


def test_token_ids(serialization, tokenizer, parity_report):
    splits = serialization["tokenizer/ids_row_splits"]
    wrong = 0
    for row, text in enumerate(serialization["tokenizer/strings"].tolist()):
        theirs = (serialization["tokenizer/ids_values"][splits[row] : splits[row + 1]] + 3000).tolist()
        ours = caption_tokens(text, tokenizer, VOCABULARY, len(theirs)).tolist()
        wrong += ours != theirs
    assert len(tokenizer) == serialization["tokenizer/vocab_size"]
    parity_report("strings with other token ids", wrong)


def test_decoding(golden_dir, tokenizer, parity_report):
    arrays = load(golden_dir, "decoding_captioning")
    tokens = torch.from_numpy(arrays["pred_seq"])
    found = TASK.parse(tokens, None, VOCABULARY, tokenizer=tokenizer)
    parity_report("caption ids", difference(found.original_pred, torch.from_numpy(arrays["original_pred"])))
    clipped = torch.from_numpy(arrays["clipped_pred"]).long()
    parity_report("caption ids, clipped", difference(found.clipped_pred, clipped))

    theirs = arrays["pred_text"].tolist()
    whole = [decode_text(row, tokenizer) for row in found.clipped_pred.tolist()]
    parity_report("caption texts that differ, whole rows", sum(a != b for a, b in zip(whole, theirs)))
    runs_on = [row for row, counts in enumerate(found.malformed) if "after_end" in counts]
    assert runs_on == [5]  # the reference goes on after the end: "An airport fill A fleet of airplanes rest at their"
    assert found.texts[5] == "An airport fill" != theirs[5]
    assert all(ours == text for row, (ours, text) in enumerate(zip(found.texts, theirs)) if row not in runs_on)

    references = TASK.parse(torch.from_numpy(arrays["gt_seq"]), None, VOCABULARY, tokenizer=tokenizer)
    wrong = sum(ours != text for ours, text in zip(references.texts, arrays["gt_text"].tolist()))
    parity_report("reference captions that differ", wrong)


def test_malformed_streams_are_counted(golden_dir, tokenizer):
    tokens = torch.from_numpy(load(golden_dir, "decoding_captioning")["pred_seq"])
    counts = TASK.parse(tokens, None, VOCABULARY, tokenizer=tokenizer).malformed
    assert counts[:3] == [{"unfinished": 1}, {}, {}]
    assert counts[5] == {"after_end": 10}
    assert counts[6] == {"text": 24, "unfinished": 1}  # padding from the start on
    assert counts[7]["text"] == 13
    assert counts[8] == {"text": 2}
