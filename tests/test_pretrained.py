"""Which weights a model with other classes, words or sizes starts from: row by row, and in a real training."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf import Pix2SeqConfig, Pix2SeqForConditionalGeneration, Pix2SeqProcessor
from pix2seq_hf.data.shapes import SHAPE_CLASSES, draw_shapes
from pix2seq_hf.training.pretrained import adapt_state, load_pretrained, map_tokens, match_classes, shorten
from tiny_models import make_config, make_model
from tiny_multitask import multitask_config, save_multitask, tiny_tokenizer

TABLE, BIAS = "model.decoder.token_embeddings.weight", "lm_head.bias"


def adapt(earlier, **changes):
    """Weights of a model that differs from `earlier` as said; also the fresh weights, and the lines."""
    config = Pix2SeqConfig(**{**earlier.config.to_diff_dict(), **changes})
    torch.manual_seed(1)
    fresh = Pix2SeqForConditionalGeneration(config).state_dict()
    state, lines = adapt_state(earlier.state_dict(), fresh, earlier.config, config)
    assert state.keys() == fresh.keys()
    return state, fresh, lines


def assert_rows(found, expected):
    assert torch.equal(found, expected)


# --- Tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_same_configuration_keeps_every_weight(is_tied):
    earlier = make_model(tie_word_embeddings=is_tied, position_encoding="learned")
    state, _, lines = adapt(earlier)
    for name, weights in earlier.state_dict().items():
        assert torch.equal(state[name], weights), name
    assert lines == ["classes kept: 3 of 3 (person, car, toothbrush)"]


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_of_classes_follow_their_names(is_tied):
    earlier = make_model(tie_word_embeddings=is_tied)
    state, fresh, lines = adapt(earlier, id2label={1: "Car", 2: "bus", 3: "PERSON", 5: "tree"})
    before = earlier.state_dict()
    for name in (TABLE, "lm_head.weight", BIAS):
        assert_rows(state[name][101], before[name][103])  # car
        assert_rows(state[name][103], before[name][101])  # person
        for token in (102, 105, 190):  # bus, tree, and the number that was toothbrush
            assert_rows(state[name][token], fresh[name][token])
        for token in (*range(101), 104, *range(106, 190), *range(191, 2100)):
            assert_rows(state[name][token], before[name][token])
    assert torch.equal(state[TABLE], state["lm_head.weight"]) == is_tied
    assert lines == ["classes kept: 2 of 4 (Car, PERSON); new: bus, tree"]


def test_names_match_whatever_their_case_blanks_and_hyphens():
    earlier = {1: "traffic light", 2: "TV", 3: "tv", 4: "hair  drier", 5: "bus"}
    current = {7: "Traffic_Light", 8: "tv", 9: "Tv", 10: "hair-drier", 11: "school bus"}
    assert match_classes(earlier, current) == {7: 1, 8: 3, 9: 2, 10: 4}


def test_two_classes_may_continue_one():
    earlier = make_model()
    state, _, _ = adapt(earlier, id2label={1: "person", 2: "Person"})
    assert_rows(state[TABLE][101], state[TABLE][102])


def test_a_layout_with_other_numbers_is_followed():
    earlier = make_model(vocab_size=3040, text_vocab_shift=3000)
    state, fresh, _ = adapt(
        earlier,
        base_vocab_shift=120,
        coord_vocab_shift=300,
        text_vocab_shift=1310,
        vocab_size=1400,
        id2label={1: "car"},
    )
    before = earlier.state_dict()
    assert_rows(state[TABLE][:100], before[TABLE][:100])
    assert_rows(state[TABLE][100:120], fresh[TABLE][100:120])  # reserved now, classes before
    assert_rows(state[TABLE][121], before[TABLE][103])
    assert_rows(state[TABLE][300:1300], before[TABLE][1000:2000])
    assert_rows(state[BIAS][1310:1350], before[BIAS][3000:3040])
    assert_rows(state[BIAS][1350:], fresh[BIAS][1350:])


def test_other_bins_lie_between_the_nearest_ones():
    earlier = make_model()
    state, _, lines = adapt(earlier, quantization_bins=500)
    before = earlier.state_dict()[TABLE][1000:2000]
    assert_rows(state[TABLE][1000], before[0])
    assert_rows(state[TABLE][1499], before[999])
    place = 123 * 999 / 499
    share = place - int(place)
    expected = (1 - share) * before[int(place)] + share * before[int(place) + 1]
    torch.testing.assert_close(state[TABLE][1123], expected)
    assert "coordinates: 500 bins interpolated from 1000" in lines


def test_a_larger_vocabulary_begins_with_the_smaller_one():
    earlier = make_model()
    state, fresh, _ = adapt(earlier, vocab_size=3300)
    assert_rows(state[TABLE][:2100], earlier.state_dict()[TABLE])
    assert_rows(state[TABLE][2100:], fresh[TABLE][2100:])


def test_words_follow_their_text():
    config = multitask_config()
    words = tiny_tokenizer().get_vocab()
    others = {"<pad>": 0, "</s>": 1, "<unk>": 2, "dog": 3, "zebra": 4, "street": 5}
    rows, lines = map_tokens(config, config, words, others)
    expected = [3000, 3001, 3002, 3000 + words["dog"], -1, 3000 + words["street"]]
    assert rows.lower[3000:3006].tolist() == expected and words["dog"] != 3
    assert lines[-1] == "words of captions kept: 5 of 6"
    rows, lines = map_tokens(config, config, None, others)
    assert (rows.lower[3000:3006] == -1).all() and lines[-1] == "words of captions kept: 0 of 6"
    rows, _ = map_tokens(config, config, words, words)
    assert torch.equal(rows.lower, torch.arange(config.vocab_size))


# --- Positions --------------------------------------------------------------------------------------------------------


def test_longer_sequences_get_fresh_positions():
    earlier = make_model()
    state, fresh, lines = adapt(earlier, max_position_embeddings=80)
    name = "model.decoder.position_embeddings"
    assert_rows(state[name][:64], earlier.state_dict()[name])
    assert_rows(state[name][64:], fresh[name][64:])
    assert "positions of tokens: 64 kept, 16 new" in lines
    state, _, lines = adapt(earlier, max_position_embeddings=40)
    assert_rows(state[name], earlier.state_dict()[name][:40])
    assert len(lines) == 1


def test_sine_codes_of_another_length_are_said():
    _, _, lines = adapt(make_model(text_position_encoding="sin_cos"), max_position_embeddings=80)
    assert lines[-1] == "positions of tokens: sine codes of 64 positions are spread over 80 now"


def test_learned_positions_in_the_picture_are_interpolated():
    earlier = make_model(position_encoding="learned")
    name = "model.encoder.embeddings.position_embeddings"
    with torch.no_grad():
        rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
        earlier.get_parameter(name).copy_((rows + 10 * columns).flatten()[:, None].expand(-1, 32))
    state, _, lines = adapt(earlier, image_size=(96, 64))
    table = state[name].unflatten(0, (12, 8))
    assert lines[-1] == "positions in the picture: a grid of 12 x 8 interpolated from 6 x 4"
    # Away from the border the ramp stays a ramp: half a step of the earlier grid from one to the next.
    torch.testing.assert_close(table[4, 3:5, 0].diff(), torch.tensor([5.0]))
    torch.testing.assert_close(table[5:7, 3, 0].diff(), torch.tensor([0.5]))


def test_sine_positions_need_nothing():
    earlier = make_model()
    state, _, lines = adapt(earlier, image_size=(96, 64))
    assert all(torch.equal(state[name], weights) for name, weights in earlier.state_dict().items())
    assert len(lines) == 1


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 64}, "has hidden_size 32, not 64; leave it out of model.config"),
        ({"patch_size": 16}, "has patch_size 8, not 16"),
        ({"resnet_variant": "c4"}, "has resnet_variant c1, not c4"),
        ({"decoder_num_attention_heads": 4}, "has decoder_num_attention_heads 3, not 4"),
    ],
)
def test_sizes_that_weights_cannot_follow(changes, message):
    with pytest.raises(ValueError, match=message):
        adapt(make_model(), **changes)


def test_parts_that_the_network_does_not_have_may_differ():
    adapt(make_model(), resnet_depth=50)
    adapt(make_model(resnet_variant="c4"), patch_size=32)


def test_fewer_and_more_layers_are_said():
    _, _, lines = adapt(make_model(), decoder_num_hidden_layers=1)
    assert lines[-1].startswith("not used of the pretrained model: model.decoder.layers.1.") and "more" in lines[-1]
    state, fresh, lines = adapt(make_model(), num_hidden_layers=3, use_output_bias=True)
    assert lines[-1].startswith("missing from the pretrained model, started fresh: model.encoder.layers.2.")
    name = "model.encoder.layers.2.mlp.fc1.weight"
    assert_rows(state[name], fresh[name])


def test_a_separate_output_table_starts_as_the_shared_one():
    earlier = make_model()
    state, _, _ = adapt(earlier, tie_word_embeddings=False)
    assert_rows(state["lm_head.weight"], earlier.state_dict()[TABLE])
    _, _, lines = adapt(make_model(tie_word_embeddings=False), tie_word_embeddings=True)
    assert lines[-1].startswith("not used of the pretrained model: lm_head.weight")


def test_long_lists_are_cut():
    assert shorten([str(number) for number in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_loading_a_folder(tmp_path):
    earlier, processor = save_multitask(tmp_path / "model")
    config = multitask_config(id2label={5: "Dog", 6: "unicorn"})
    model, lines = load_pretrained(tmp_path / "model", config, processor.caption_tokenizer)
    assert model.config.id2label == {5: "Dog", 6: "unicorn"} and model.dtype == torch.float32
    assert_rows(model.lm_head.weight[105], earlier.lm_head.weight[118])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert lines == ["classes kept: 1 of 2 (Dog); new: unicorn", "words of captions kept: 13 of 13"]


def test_a_different_generator_gives_different_new_rows_and_the_same_old_ones(tmp_path):
    save_multitask(tmp_path / "model")
    config = multitask_config(id2label={5: "dog", 6: "unicorn"})
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables.append(load_pretrained(tmp_path / "model", config)[0].lm_head.weight)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0][106], tables[2][106])
    assert torch.equal(tables[0][105], tables[2][105])


def test_folders_that_are_no_pix2seq_model(tmp_path):
    config = make_config()
    with pytest.raises(ValueError, match=r"is no model folder, there is no config\.json in it"):
        load_pretrained(tmp_path, config)
    for name in (tmp_path / "missing", "missing", "./missing"):  # no network is asked for what is meant to be here
        with pytest.raises(FileNotFoundError, match="missing: no such folder, and it cannot be a name on the Hub"):
            load_pretrained(name, config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(ValueError, match="is a checkpoint of another model, 'detr' instead of 'pix2seq'"):
        load_pretrained(tmp_path, config)


def test_weights_that_are_cut_off_or_incomplete(tmp_path):
    from safetensors.torch import load_file, save_file

    save_multitask(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    del state["model.encoder.norm.bias"]
    save_file({**state, "extra": torch.zeros(1)}, weights, metadata={"format": "pt"})
    _, lines = load_pretrained(tmp_path, multitask_config())
    assert lines[-2] == f"missing from the weights of {tmp_path}, started fresh: model.encoder.norm.bias"
    assert lines[-1] == f"not used of the weights of {tmp_path}: extra"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut off"):
        load_pretrained(tmp_path, multitask_config())


# --- A real training --------------------------------------------------------------------------------------------------

SIZES = {
    "image_size": (32, 32), "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64, "drop_path_rate": 0.0, "drop_units_rate": 0.0,
    "vocab_size": 160, "coord_vocab_shift": 120, "quantization_bins": 32, "text_vocab_shift": 160,
    "max_instances_per_image": 1, "max_position_embeddings": 6,
}  # fmt: skip


def draw_scenes(names, num_scenes, seed):
    """Pictures of one shape each, as `(picture, box, name of the shape)`."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, name in SHAPE_CLASSES.items() if name in names]
    for _ in range(num_scenes):
        picture, [shape] = draw_shapes(rng, (32, 32), 1, (0.4, 0.7), labels=kinds, use_class_colors=True)
        yield picture, list(shape.box_xywh), SHAPE_CLASSES[shape.label]


def build_batch(config, scenes):
    pictures, boxes, names = zip(*scenes, strict=True)
    labels = {name.lower(): label for label, name in config.id2label.items()}
    annotations = [
        {"image_id": index, "annotations": [{"bbox": box, "category_id": labels[name]}]}
        for index, (box, name) in enumerate(zip(boxes, names, strict=True))
    ]
    processor = Pix2SeqProcessor.from_config(config)
    return processor(images=list(pictures), annotations=annotations, task="object_detection", return_tensors="pt")


def fit(model, batch, num_steps):
    """Train on one batch; return the losses before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(num_steps):
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def class_accuracy(model, batch):
    """Share of the class tokens that the model gets right when it is given the box."""
    labels = batch["labels"].flatten(0, -2)
    with torch.no_grad():
        logits = model.eval()(pixel_values=batch["pixel_values"], decoder_input_ids=batch["decoder_input_ids"]).logits
    is_class = (labels > 100) & (labels < 120)
    return (logits.argmax(-1) == labels)[is_class].float().mean().item()


def test_fine_tuning_on_some_of_the_classes_in_another_order_starts_ahead(tmp_path):
    torch.manual_seed(0)
    before = Pix2SeqConfig(**SIZES, id2label={1: "disc", 2: "rectangle", 3: "star", 4: "ring"})
    scenes = list(draw_scenes(before.id2label.values(), 32, seed=0))
    model = Pix2SeqForConditionalGeneration(before)
    fit(model, build_batch(before, scenes), 150)
    model.save_pretrained(tmp_path)

    now = Pix2SeqConfig(**SIZES, id2label={1: "Ring", 2: "disc", 3: "cross"})
    model, lines = load_pretrained(tmp_path, now)
    assert lines == ["classes kept: 2 of 3 (Ring, disc); new: cross"]
    scratch = Pix2SeqForConditionalGeneration(now)
    # What it knew has its new numbers at once, without a step of training.
    known_scenes = [scene for scene in scenes if scene[2] in ("ring", "disc")]
    known = build_batch(now, known_scenes)
    assert class_accuracy(model, known) > 0.9 and class_accuracy(scratch, known) < 0.1
    mixed = build_batch(now, [*known_scenes, *draw_scenes(["cross"], 8, seed=1)])
    ahead, behind = fit(model, mixed, 20), fit(scratch, mixed, 20)
    assert ahead[0] < 0.7 * behind[0] and ahead[-1] < 0.7 * behind[-1]
