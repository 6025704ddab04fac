import copy

import pytest
import torch

from pix2seq_hf import Pix2SeqForConditionalGeneration, Pix2SeqForObjectDetection, Pix2SeqModel
from pix2seq_hf.modeling_pix2seq_embeddings import sine_positions_1d, sine_positions_2d
from pix2seq_hf.modeling_pix2seq_resnet import Pix2SeqBatchNorm
from tiny_models import make_config, make_model, make_pictures, make_tokens

VARIANTS = [("c1", 18), ("standard", 18), ("c4", 18), ("c3", 18), ("dc5", 50)]


@pytest.mark.parametrize(("variant", "depth"), VARIANTS)
@pytest.mark.parametrize("size", [(48, 32), (37, 53)])
def test_every_encoder_takes_odd_and_oblong_pictures(variant, depth, size):
    model = make_model(resnet_variant=variant, resnet_depth=depth, image_size=size)
    output = model(make_pictures(1, 1, *size), decoder_input_ids=make_tokens(1, 4))
    rows, columns = model.config.grid_size
    assert output.encoder_last_hidden_state.shape == (1, rows * columns, 24)
    assert output.logits.shape == (1, 4, 2100)
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"use_class_token": True},
        {"position_encoding": "learned", "use_class_token": True},
        {"projection_mode": "linear"},
        {"projection_mode": "linear_p"},
        {"tie_word_embeddings": False},
        {"use_output_bias": False},
        {"text_position_encoding": "sin_cos"},
        {"resnet_variant": "standard", "resnet_sk_ratio": 0.0625},
        {"resnet_variant": "standard", "resnet_depth": 50, "resnet_sk_ratio": 0.0625},
        {"decoder_num_attention_heads": 5},  # 24 is no multiple of 5: heads of 4, as in the reference
    ],
)
def test_every_option_survives_saving(options, tmp_path):
    model = make_model(**options)
    pictures, tokens = make_pictures(), make_tokens(2, 5)
    expected = model(pictures, decoder_input_ids=tokens).logits
    model.save_pretrained(tmp_path)
    loaded = Pix2SeqForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pictures, decoder_input_ids=tokens).logits, expected, rtol=0, atol=0)
    is_tied = loaded.lm_head.weight is loaded.model.decoder.token_embeddings.weight
    assert is_tied == options.get("tie_word_embeddings", True)


def test_many_sequences_of_a_picture_equal_one_at_a_time_and_share_keys():
    model = make_model(spread=2.0)
    pictures, tokens = make_pictures(2), make_tokens(2, 3, 6)
    together = model(pictures, decoder_input_ids=tokens, use_cache=True)
    assert together.logits.shape == (6, 6, 2100)
    for picture in range(2):
        for sequence in range(3):
            alone = model(pictures[[picture]], decoder_input_ids=tokens[picture, [sequence]])
            torch.testing.assert_close(together.logits[[3 * picture + sequence]], alone.logits, rtol=0, atol=2e-5)
    keys = together.cache.cross_attention_cache.layers[0].keys
    assert keys.shape == (2, 3, 24, 8)  # two pictures, not six sequences
    assert together.cache.self_attention_cache.layers[0].keys.shape == (6, 3, 6, 8)


def test_sequences_must_divide_among_pictures():
    with pytest.raises(ValueError, match="3 sequences do not divide among 2 pictures"):
        make_model()(make_pictures(2), decoder_input_ids=make_tokens(3, 4))


def test_a_cached_step_equals_the_whole_sequence():
    model = make_model(spread=2.0)
    pictures, tokens = make_pictures(), make_tokens(2, 9)
    whole = model(pictures, decoder_input_ids=tokens).logits
    past = model(pictures, decoder_input_ids=tokens[:, :5], use_cache=True)
    encoded = (past.encoder_last_hidden_state,)
    for position in range(5, 9):
        past = model(
            encoder_outputs=encoded,
            decoder_input_ids=tokens[:, position : position + 1],
            cache=past.cache,
            use_cache=True,
        )
        torch.testing.assert_close(past.logits[:, 0], whole[:, position], rtol=0, atol=2e-5)


def test_batching_changes_nothing():
    model = make_model(spread=2.0, resnet_variant="c4")
    pictures, tokens = make_pictures(4), make_tokens(4, 6)
    together = model(pictures, decoder_input_ids=tokens).logits
    for row in range(4):
        alone = model(pictures[[row]], decoder_input_ids=tokens[[row]]).logits
        torch.testing.assert_close(together[[row]], alone, rtol=0, atol=2e-5)


def test_attention_implementations_agree_and_switch_at_run_time():
    model = make_model(spread=2.0)
    pictures, tokens = make_pictures(), make_tokens(2, 2, 6)
    results = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results[implementation] = model(pictures, decoder_input_ids=tokens).logits
    torch.testing.assert_close(results["eager"], results["sdpa"], rtol=0, atol=2e-5)


def test_hidden_states_and_attentions():
    model = make_model()
    model.set_attn_implementation("eager")
    output = model(
        make_pictures(),
        decoder_input_ids=make_tokens(2, 3, 6),
        output_hidden_states=True,
        output_attentions=True,
    )
    assert [tuple(state.shape) for state in output.encoder_hidden_states] == [(2, 24, 32)] * 3
    assert [tuple(state.shape) for state in output.decoder_hidden_states] == [(6, 6, 24)] * 3
    assert [tuple(weights.shape) for weights in output.encoder_attentions] == [(2, 4, 24, 24)] * 2
    assert [tuple(weights.shape) for weights in output.decoder_attentions] == [(6, 3, 6, 6)] * 2
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(6, 3, 6, 24)] * 2
    torch.testing.assert_close(output.cross_attentions[0].sum(-1), torch.ones(6, 3, 6))
    assert (output.decoder_attentions[0].triu(1) == 0).all()


def test_gradient_checkpointing_gives_the_same_gradients():
    model = make_model(drop_path_rate=0.0, drop_units_rate=0.0).train()
    inputs = {"pixel_values": make_pictures(), "decoder_input_ids": make_tokens(2, 6), "labels": make_tokens(2, 6)}
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    for candidate in (model, checkpointed):
        candidate(**inputs).loss.backward()
    for (name, expected), found in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_labels_give_the_weighted_loss_and_stand_in_for_inputs():
    model = make_model()
    pictures, labels = make_pictures(), make_tokens(2, 3, 6)
    weights = torch.rand(2, 3, 6)
    output = model(pictures, decoder_input_ids=labels, labels=labels, label_weights=weights)
    losses = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = (losses * weights.flatten()).sum() / weights.sum()
    torch.testing.assert_close(output.loss, expected)
    assert output.cache is None

    shifted = torch.cat([torch.full((2, 3, 1), 10), labels[..., :-1]], -1)
    explicit = model(pictures, decoder_input_ids=shifted, labels=labels).loss
    torch.testing.assert_close(model(pictures, labels=labels).loss, explicit)


def test_overfits_a_batch():
    torch.manual_seed(0)
    model = make_model(drop_path_rate=0.0, drop_units_rate=0.0).train()
    pictures, tokens = make_pictures(), make_tokens(2, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(300):
        loss = model(pictures, labels=tokens).loss
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < first
    assert (model.eval().generate(pictures, max_new_tokens=8, do_sample=False)[:, 1:] == tokens).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_load_and_stay_close(dtype, tmp_path):
    model = make_model(resnet_variant="standard")
    model.save_pretrained(tmp_path)
    half = Pix2SeqForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    pictures, tokens = make_pictures(), make_tokens(2, 5)
    logits = half(pictures, decoder_input_ids=tokens).logits
    assert logits.dtype == dtype
    expected = model(pictures, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1 * expected.std().item())


def test_autocast_training_step():
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(make_pictures(), labels=make_tokens(2, 6)).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_buffers_and_new_weights_are_right_after_loading_on_the_meta_device(tmp_path):
    model = make_model(text_position_encoding="sin_cos")
    state = {key: value for key, value in model.state_dict().items() if "lm_head.bias" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = Pix2SeqForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.model.decoder.position_embeddings, sine_positions_1d(64, 24))
    torch.testing.assert_close(loaded.model.encoder.embeddings.position_embeddings, sine_positions_2d(6, 4, 32))
    assert 0.005 < loaded.lm_head.bias.std() < 0.03  # truncated normal of deviation 0.02


def test_resize_token_embeddings_keeps_the_old_rows_and_the_tie():
    model = make_model()
    before = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(2110)
    assert model.config.vocab_size == 2110 and model.lm_head.bias.shape == (2110,)
    assert model.lm_head.weight is model.model.decoder.token_embeddings.weight
    torch.testing.assert_close(model.lm_head.weight[:2100], before, rtol=0, atol=0)
    assert model(make_pictures(), decoder_input_ids=make_tokens(2, 4, high=2110)).logits.shape[-1] == 2110


def test_sine_positions_follow_the_size_of_the_picture_and_learned_ones_refuse():
    tokens = make_tokens(1, 4)
    assert make_model()(make_pictures(1, 1, 64, 40), decoder_input_ids=tokens).encoder_last_hidden_state.shape[1] == 40
    model = make_model(position_encoding="learned")
    with pytest.raises(ValueError, match=r"\(8, 5\).*learned positions for \(6, 4\)"):
        model(make_pictures(1, 1, 64, 40), decoder_input_ids=tokens)


def test_sine_positions_by_hand():
    table = sine_positions_1d(3, 4)
    angles = torch.tensor([0.0, 3.1415926, 6.2831852])
    torch.testing.assert_close(table[:, 0], angles.sin())
    torch.testing.assert_close(table[:, 1], (angles / 100).sin())
    torch.testing.assert_close(table[:, 2], angles.cos())
    assert sine_positions_1d(1, 4).tolist() == [[0, 0, 1, 1]]
    grid = sine_positions_2d(2, 3, 8)
    torch.testing.assert_close(grid[4], torch.cat([sine_positions_1d(2, 4)[1], sine_positions_1d(3, 4)[1]]))
    torch.testing.assert_close(sine_positions_2d(1, 5, 8), sine_positions_1d(5, 8))


def test_new_weights_follow_the_rules_of_the_reference():
    model = make_model(resnet_variant="standard", decoder_hidden_size=48, decoder_num_attention_heads=4)
    attention = model.model.decoder.layers[0].cross_attention
    for projection, bound in (
        (attention.q_proj, (6 / (48 * (4 + 12))) ** 0.5),
        (attention.out_proj, (6 / (4 * (12 + 48))) ** 0.5),
        (model.model.decoder.layers[0].mlp.fc1, (6 / (48 + 96)) ** 0.5),
    ):
        assert 0.95 * bound < projection.weight.abs().max() <= bound
        assert (projection.bias == 0).all()
    for table in (model.lm_head.weight, model.lm_head.bias, model.model.decoder.position_embeddings):
        assert 0.015 < table.std() < 0.02 and table.abs().max() <= 0.04
    block = model.model.encoder.embeddings.backbone.groups[0][0]
    assert (block.convs[-1].norm.weight == 0).all() and (block.convs[0].norm.weight == 1).all()


def test_batch_norm_keeps_the_biased_variance():
    norm = Pix2SeqBatchNorm(2).train()
    values = torch.randn(3, 2, 2, 2)
    expected = torch.nn.functional.batch_norm(values, None, None, training=True, eps=1e-5)
    torch.testing.assert_close(norm(values), expected)
    by_channel = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, 0.1 * by_channel.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * by_channel.var(1, unbiased=False))


def test_stochastic_depth_drops_whole_branches_in_training_only():
    model = make_model(drop_path_rate=0.9, drop_units_rate=0.0, num_hidden_layers=6)
    pictures, tokens = make_pictures(1), make_tokens(1, 4)
    quiet = [model(pictures, decoder_input_ids=tokens).logits for _ in range(2)]
    torch.testing.assert_close(*quiet, rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    noisy = [model(pictures, decoder_input_ids=tokens).logits for _ in range(4)]
    assert any((noisy[0] - other).abs().max() > 1e-3 for other in noisy[1:])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": torch.zeros(2, 1, 48, 32)}, r"\(batch, 3, height, width\), got \(2, 1, 48, 32\)"),
        ({"decoder_input_ids": torch.ones(1, 3, dtype=torch.long)}, "give pixel_values or encoder_outputs"),
        (
            {"pixel_values": torch.zeros(1, 3, 48, 32), "decoder_input_ids": torch.ones(1, 65, dtype=torch.long)},
            "65 tokens is longer than the model's 64 positions",
        ),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


def test_tuple_output_and_base_model(tmp_path):
    model = make_model()
    pictures, tokens = make_pictures(), make_tokens(2, 4)
    as_tuple = model(pictures, decoder_input_ids=tokens, return_dict=False)
    torch.testing.assert_close(as_tuple[0], model(pictures, decoder_input_ids=tokens).logits)
    model.save_pretrained(tmp_path)
    base = Pix2SeqModel.from_pretrained(tmp_path)
    states = base(pictures, decoder_input_ids=tokens).last_hidden_state
    torch.testing.assert_close(model.lm_head(states), as_tuple[0])


def test_object_detection_head_decodes_without_tokens_and_trains_with_labels():
    model = make_model(Pix2SeqForObjectDetection, spread=2.0)
    output = model(make_pictures(), return_dict=True)
    assert output.scores.shape == output.labels.shape and output.pred_boxes.shape == (*output.scores.shape, 4)
    assert set(output.labels.unique().tolist()) <= {1, 3, 90}  # only labels with a name
    assert ((output.pred_boxes >= 0) & (output.pred_boxes <= 1)).all()
    assert type(output)(**dict(output)).scores is output.scores
    assert model(make_pictures(), labels=make_tokens(2, 4)).loss.isfinite()


@pytest.mark.slow
def test_compiled_forward_and_training_step_agree_with_eager():
    config = make_config(drop_path_rate=0.0, drop_units_rate=0.0)
    torch.manual_seed(0)
    model = Pix2SeqForConditionalGeneration(config).train()
    inputs = {"pixel_values": make_pictures(), "labels": make_tokens(2, 6)}
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model)
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, model(**inputs).loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)
