"""`pix2seq convert` from a checkpoint to a folder, and what it says when that cannot be."""

import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForObjectDetection, AutoProcessor, AutoTokenizer

from pix2seq_hf import Pix2SeqConfig, Pix2SeqForConditionalGeneration, cli
from pix2seq_hf.conversion import config_to_reference, convert, revert_variables
from pix2seq_hf.conversion.checkpoint import find_checkpoint, parse_checkpoint_file, read_model_variables
from pix2seq_hf.conversion.names import KEY_SUFFIX

SENTENCES = [
    "a dog runs over the green field", "two people sit at a table", "a red bus on a street", "the cat sleeps on a bed",
    "a man rides a horse near the water", "several birds fly over a lake", "a child eats an apple in the kitchen",
]  # fmt: skip


def make_config(**overrides):
    sizes = {
        "image_size": (32, 48), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "decoder_hidden_size": 12, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 3, "decoder_intermediate_size": 24, "vocab_size": 1300,
        "quantization_bins": 200, "coord_vocab_shift": 1000, "text_vocab_shift": 1300, "max_position_embeddings": 520,
    }  # fmt: skip
    return Pix2SeqConfig(**{**sizes, **overrides})


def write_folder(folder, config, name="ckpt-7"):
    """A model directory with config.json and stand-ins for TensorFlow's files; the weights are returned."""
    torch.manual_seed(0)
    model = Pix2SeqForConditionalGeneration(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_to_reference(config)))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    (folder / f"{name}.index").write_bytes(b"index")
    (folder / f"{name}.data-00000-of-00001").write_bytes(b"data")
    return revert_variables(model.state_dict(), config)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """`reference(**config)` writes a model directory whose weights are read without TensorFlow."""

    def write(name="run", **overrides):
        config = make_config(**overrides)
        variables = write_folder(tmp_path / name, config)
        monkeypatch.setattr(convert, "read_model_variables", lambda prefix: dict(variables))
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_prefix=str(prefix), vocab_size=45, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


def run(capsys, *arguments):
    code = cli.main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *arguments):
    """Run the command, check that it ends with one line and exit code 2, and return the line."""
    code, _, error = run(capsys, *arguments)
    assert code == 2 and error.startswith("pix2seq convert: error: ") and error.count("\n") == 1, error
    return error


def test_a_checkpoint_becomes_a_folder(reference, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    code, text, _ = run(capsys, "--checkpoint", reference(), "--output", output)
    assert code == 0 and "self-check" in text and str(output) in text
    names = {path.name for path in output.iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"}
    assert not [path for path in output.parent.iterdir() if path != output]

    torch.manual_seed(0)
    original = Pix2SeqForConditionalGeneration(make_config()).eval()
    model = Pix2SeqForConditionalGeneration.from_pretrained(output).eval()
    pixel_values, tokens = torch.rand(1, 3, 32, 48), torch.tensor([[10, 1000, 1100]])
    with torch.no_grad():
        first, second = (each(pixel_values=pixel_values, decoder_input_ids=tokens).logits for each in (original, model))
    torch.testing.assert_close(first, second)
    assert model.generation_config.return_dict_in_generate
    assert model.generation_config.task_settings["10"]["top_p"] == 0.4
    assert type(AutoModel.from_pretrained(output)).__name__ == "Pix2SeqModel"
    assert type(AutoModelForObjectDetection.from_pretrained(output)).__name__ == "Pix2SeqForObjectDetection"
    processor = AutoProcessor.from_pretrained(output)
    assert processor.image_processor.size["width"] == 48 and processor.vocabulary.quantization_bins == 200


def test_a_single_checkpoint_needs_no_state_file(reference, tmp_path, capsys):
    folder = reference()
    (folder / "checkpoint").unlink()
    for number, path in enumerate((folder, folder / "ckpt-7", folder / "ckpt-7.index")):
        assert run(capsys, "--checkpoint", path, "--output", tmp_path / f"out{number}")[0] == 0


def test_a_converted_folder_is_replaced_and_others_are_not(reference, tmp_path, capsys):
    folder, output = reference(), tmp_path / "out"
    assert run(capsys, "--checkpoint", folder, "--output", output)[0] == 0
    assert run(capsys, "--checkpoint", folder, "--output", output)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.txt").write_text("x")
    assert "holds other files" in fails(capsys, "--checkpoint", folder, "--output", other)
    assert [path.name for path in other.iterdir()] == ["holiday.txt"]
    assert "is a file" in fails(capsys, "--checkpoint", folder, "--output", other / "holiday.txt")


def test_labels_come_from_a_file(reference, tmp_path, capsys):
    folder, labels = reference(), tmp_path / "labels.json"
    labels.write_text('{"1": "red cell", "3": "platelet"}')
    assert run(capsys, "--checkpoint", folder, "--output", tmp_path / "out", "--labels", labels)[0] == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {1: "red cell", 3: "platelet"}
    labels.write_text('["red cell", "platelet"]')
    assert convert.read_labels(labels) == {1: "red cell", 2: "platelet"}


@pytest.mark.parametrize("text", ["", "3", "{}", '{"a": "b"}', '{"1": 2}', '{"1": null}'])
def test_wrong_labels_are_one_line(reference, tmp_path, capsys, text):
    labels = tmp_path / "labels.json"
    labels.write_text(text)
    error = fails(capsys, "--checkpoint", reference(), "--output", tmp_path / "out", "--labels", labels)
    assert str(labels) in error


def test_more_than_899_labels_are_one_line(reference, tmp_path, capsys):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([f"class {i}" for i in range(900)]))
    error = fails(capsys, "--checkpoint", reference(), "--output", tmp_path / "out", "--labels", labels)
    assert "900" in error and "899" in error


def test_a_text_checkpoint_carries_its_tokenizer(reference, tmp_path, capsys, spm_file):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder, output = reference(vocab_size=1400, tasks=["object_detection", "captioning"]), tmp_path / "out"
    assert run(capsys, "--checkpoint", folder, "--output", output, "--tokenizer", spm_file)[0] == 0
    assert not (output / "tokenizer.json").exists()  # at the root it would mislead the library's pipelines
    tokenizer = AutoProcessor.from_pretrained(output).caption_tokenizer
    assert AutoTokenizer.from_pretrained(output / "caption_tokenizer").get_vocab() == tokenizer.get_vocab()
    model = sentencepiece.SentencePieceProcessor(str(spm_file))
    for sentence in [*SENTENCES, "  two  dogs ", "Unknown Ω signs", "ﬁeld"]:
        ids = model.encode(sentence)
        assert tokenizer(sentence).input_ids == [*ids, 1]
        assert tokenizer(sentence, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode([*ids, 1, 0, 0], skip_special_tokens=True) == model.decode(ids)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_a_text_checkpoint_without_tokenizer_is_one_line(reference, tmp_path, capsys):
    folder = reference(vocab_size=1400)
    assert "--tokenizer FILE" in fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out")
    error = fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out", "--tokenizer", tmp_path / "none.model")
    assert "none.model" in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit_is_one_line(reference, tmp_path, capsys, spm_file):
    output = tmp_path / "out"
    error = fails(capsys, "--checkpoint", reference("a"), "--output", output, "--tokenizer", spm_file)
    assert "writes no text" in error
    error = fails(capsys, "--checkpoint", reference("b", vocab_size=1340), "--output", output, "--tokenizer", spm_file)
    assert "45 pieces" in error and "room for 40" in error
    folder = reference("c", vocab_size=1400)
    error = fails(capsys, "--checkpoint", folder, "--output", output, "--tokenizer", folder / "config.json")
    assert "not a SentencePiece model" in error


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    output = tmp_path / "out"
    assert "no checkpoint nowhere/run" in fails(capsys, "--checkpoint", "nowhere/run", "--output", output)
    error = fails(capsys, "--checkpoint", "coco_det_finetune/vitb_640x640", "--output", output)
    assert "did you mean coco_det_finetune/vit_b_640x640" in error
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in fails(capsys, "--checkpoint", tmp_path / "empty", "--output", output)
    assert "--checkpoint" in fails(capsys, "--output", output)
    assert "--output" in fails(capsys, "--checkpoint", tmp_path / "empty")


@pytest.mark.parametrize("missing", ["ckpt-7.index", "ckpt-7.data-00000-of-00001", "config.json"])
def test_a_missing_file_is_named(reference, tmp_path, capsys, missing):
    folder = reference()
    (folder / missing).unlink()
    assert missing in fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out")


def test_incomplete_and_ambiguous_folders_are_named(reference, tmp_path):
    folder = reference()
    (folder / "ckpt-7.data-00000-of-00001").rename(folder / "ckpt-7.data-00000-of-00003")
    with pytest.raises(ValueError, match="1 of its 3 data files"):
        find_checkpoint(folder)
    (folder / "checkpoint").write_text("<html>")
    with pytest.raises(ValueError, match=r"checkpoint is damaged.*model_checkpoint_path"):
        find_checkpoint(folder)
    (folder / "checkpoint").unlink()
    (folder / "ckpt-9.index").write_bytes(b"index")
    with pytest.raises(ValueError, match=r"several checkpoints \(ckpt-7, ckpt-9\)"):
        find_checkpoint(folder)
    (folder / "ckpt-9.index").write_bytes(b"")
    (folder / "ckpt-9.data-00000-of-00001").write_bytes(b"data")
    with pytest.raises(ValueError, match="is empty"):
        find_checkpoint(folder / "ckpt-9")


def test_the_state_file_may_name_the_folder_of_another_machine():
    assert parse_checkpoint_file('model_checkpoint_path: "gs://bucket/run/ckpt-12"\n') == "ckpt-12"
    with pytest.raises(ValueError, match="model_checkpoint_path"):
        parse_checkpoint_file('all_model_checkpoint_paths: "ckpt-12"\n')


def test_another_model_is_one_line(reference, tmp_path, capsys):
    folder = reference()
    config_json = json.loads((folder / "config.json").read_text())
    config_json["model"]["name"] = "image_diffusion_model"
    (folder / "config.json").write_text(json.dumps(config_json))
    error = fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out")
    assert "another model" in error and "image_diffusion_model" in error and str(folder) in error
    (folder / "config.json").write_text("{")
    assert "not a JSON file" in fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out")


def test_variables_that_do_not_fit_are_one_line_and_leave_nothing_behind(reference, tmp_path, capsys):
    folder = reference()
    config_json = json.loads((folder / "config.json").read_text())
    config_json["model"]["use_cls_token"] = True
    (folder / "config.json").write_text(json.dumps(config_json))
    error = fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out")
    assert "lacks 'model/encoder/vit.Scls_token_embedding'" in error
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_list_is_printed(capsys):
    code, text, _ = run(capsys, "--list")
    assert code == 0 and len(text.splitlines()) == 19 and "multi_task/ckpt/vit_b_1024x1024" in text


def test_tensorflow_is_asked_for_when_it_is_missing(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "run", make_config())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    error = fails(capsys, "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")
    assert 'pip install "pix2seq_hf[conversion]"' in error


def test_sentencepiece_is_asked_for_when_it_is_missing(reference, tmp_path, capsys, monkeypatch):
    (tmp_path / "x.model").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    folder = reference(vocab_size=1400)
    error = fails(capsys, "--checkpoint", folder, "--output", tmp_path / "out", "--tokenizer", tmp_path / "x.model")
    assert 'pip install "pix2seq_hf[conversion]"' in error


@pytest.fixture
def tensorflow_checkpoint(tmp_path):
    """A checkpoint in TensorFlow's format with weights, optimizer state old and new, a counter and an object graph."""
    tensorflow = pytest.importorskip("tensorflow")
    config = make_config()
    variables = write_folder(tmp_path / "run", config)
    tensors = {name + KEY_SUFFIX: array for name, array in variables.items()}
    kernel = "model/proj/kernel"
    tensors |= {
        f"{kernel}/.OPTIMIZER_SLOT/optimizer/m{KEY_SUFFIX}": variables[kernel],
        f"optimizer/_variables/1{KEY_SUFFIX}": variables[kernel],
        f"global_step{KEY_SUFFIX}": np.int64(7),
        "_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"graph" * 100, dtype=object),
    }
    prefix = tmp_path / "run" / "ckpt-7"
    (tmp_path / "run" / "ckpt-7.index").unlink()
    (tmp_path / "run" / "ckpt-7.data-00000-of-00001").unlink()
    names = sorted(tensors)
    values = [tensorflow.constant(tensors[name]) for name in names]
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    return prefix, variables


def test_weights_are_read_without_the_optimizers_state(tensorflow_checkpoint):
    prefix, variables = tensorflow_checkpoint
    read = read_model_variables(prefix)
    assert read.keys() == variables.keys()
    assert all(np.array_equal(read[name], variables[name]) for name in variables)


@pytest.mark.parametrize("missing_bytes", [1, 600, 20_000])
def test_half_a_download_is_one_line(tensorflow_checkpoint, tmp_path, capsys, missing_bytes):
    data = tmp_path / "run" / "ckpt-7.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-missing_bytes])
    error = fails(capsys, "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")
    assert "incomplete" in error and "fetch it again" in error and not (tmp_path / "out").exists()


def test_damage_is_one_line(tensorflow_checkpoint, tmp_path, capsys):
    data = tmp_path / "run" / "ckpt-7.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[::1000] = bytes(255 - value for value in content[::1000])
    data.write_bytes(content)
    assert "is damaged" in fails(capsys, "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")
    index = tmp_path / "run" / "ckpt-7.index"
    index.write_bytes(index.read_bytes()[:-100])
    assert "is damaged" in fails(capsys, "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")


def test_a_checkpoint_without_network_is_one_line(tmp_path, capsys):
    tensorflow = pytest.importorskip("tensorflow")
    write_folder(tmp_path / "run", make_config())
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "run" / "ckpt-7"), tensor_names=["bert/kernel"], shape_and_slices=[""],
        tensors=[tensorflow.zeros([3])],
    )  # fmt: skip
    error = fails(capsys, "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")
    assert "another model" in error and "'bert'" in error


def test_the_command_can_be_called_with_its_arguments(reference, tmp_path):
    arguments = {
        "list": False, "checkpoint": str(reference()), "output": str(tmp_path / "out"), "tokenizer": None,
        "labels": None, "base_url": "", "cache_dir": None, "json": None, "quiet": True,
    }  # fmt: skip
    assert convert.run(Namespace(**arguments)) == 0
