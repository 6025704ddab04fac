import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from pix2seq_hf.decoding_pix2seq import choose_rows
from pix2seq_hf.generation_pix2seq import build_generation_config, top_logits
from pix2seq_hf.tokenization_pix2seq import class_labels_and_scores
from tiny_models import make_config, make_model, make_pictures, make_tokens


@pytest.fixture(scope="module")
def model():
    model = make_model(spread=2.0)
    model.generation_config = build_generation_config(model.config)
    return model


def greedy(model, **kwargs):
    return model.generate(**{"do_sample": False, "max_new_tokens": 15, "return_dict_in_generate": True, **kwargs})


def written_out_classes(model, pictures, sequences, prompt_length=1):
    """Labels and scores by one teacher-forced pass over finished sequences."""
    logits = model(pictures, decoder_input_ids=sequences[:, :-1]).logits[:, prompt_length + 3 :: 5]
    return class_labels_and_scores(logits)


def test_greedy_follows_the_arg_max_of_the_whole_sequence(model):
    pictures = make_pictures()
    output = greedy(model, pixel_values=pictures)
    assert output.sequences.shape == (2, 16) and (output.sequences[:, 0] == 10).all()
    logits = model(pictures, decoder_input_ids=output.sequences[:, :-1]).logits
    assert (logits.argmax(-1) == output.sequences[:, 1:]).all()
    assert len(output.sequences.unique()) > 2


def test_class_scores_are_those_of_the_raw_logits(model):
    pictures = make_pictures()
    for settings in ({}, {"do_sample": True, "temperature": 0.3, "repetition_penalty": 1.3}, {"num_beams": 3}):
        output = greedy(model, pixel_values=pictures, **settings)
        labels, scores = written_out_classes(model, pictures, output.sequences)
        assert output.class_labels.tolist() == labels.tolist()
        torch.testing.assert_close(output.class_scores, scores, rtol=0, atol=1e-6)
        assert output.class_scores.shape == (2, 3)


def test_defaults_of_the_detection_task(model):
    torch.manual_seed(0)
    first = model.generate(make_pictures())
    torch.manual_seed(0)
    again = model.generate(make_pictures())
    assert first.sequences.shape == (2, 26)  # 5 objects of 5 tokens after the prompt
    assert first.class_scores.shape == (2, 5)
    assert first.sequences.tolist() == again.sequences.tolist()
    assert first.sequences.tolist() != model.generate(make_pictures()).sequences.tolist()


def test_what_the_caller_says_wins(model):
    assert model.generate(make_pictures(), max_new_tokens=3).sequences.shape == (2, 4)
    assert model.generate(make_pictures(), max_length=7).sequences.shape == (2, 7)
    assert isinstance(model.generate(make_pictures(), return_dict_in_generate=False, max_new_tokens=3), torch.Tensor)
    beams = [model.generate(make_pictures(), num_beams=2, max_new_tokens=6).sequences.tolist() for _ in range(2)]
    assert beams[0] == beams[1]


def test_no_message_in_normal_use(model, caplog, recwarn):
    for settings in ({}, {"do_sample": False}, {"num_beams": 2}, {"num_return_sequences": 2}):
        model.generate(make_pictures(), max_new_tokens=5, **settings)
    assert [record.message for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []


def test_many_prompts_and_samples_share_the_picture(model):
    pictures, prompts = make_pictures(), make_tokens(2, 3, 4)
    prompts[..., 0] = 11
    output = greedy(model, pixel_values=pictures, decoder_input_ids=prompts, max_new_tokens=6)
    assert output.sequences.shape == (6, 10)
    assert "class_labels" not in output  # not detection
    for picture in range(2):
        for k in range(3):
            alone = greedy(
                model, pixel_values=pictures[[picture]], decoder_input_ids=prompts[picture, [k]], max_new_tokens=6
            )
            assert output.sequences[3 * picture + k].tolist() == alone.sequences[0].tolist()
    sampled = greedy(
        model,
        pixel_values=pictures,
        decoder_input_ids=prompts,
        max_new_tokens=6,
        do_sample=True,
        num_return_sequences=4,
    )
    assert sampled.sequences.shape == (24, 10)
    assert (sampled.sequences[:, :4] == prompts.flatten(0, 1).repeat_interleave(4, 0)).all()
    assert sampled.cache.cross_attention_cache.layers[0].keys.shape[0] == 2
    assert sampled.cache.self_attention_cache.layers[0].keys.shape[0] == 24


def test_samples_with_top_k_1_are_greedy(model):
    pictures, prompts = make_pictures(), make_tokens(2, 2, 3)
    single = greedy(model, pixel_values=pictures, decoder_input_ids=prompts).sequences
    sampled = greedy(
        model, pixel_values=pictures, decoder_input_ids=prompts, do_sample=True, top_k=1, num_return_sequences=3
    )
    assert sampled.sequences.tolist() == single.repeat_interleave(3, 0).tolist()


def test_static_cache_equals_dynamic(model):
    pictures = make_pictures()
    dynamic = greedy(model, pixel_values=pictures)
    static = greedy(model, pixel_values=pictures, cache_implementation="static")
    assert static.sequences.tolist() == dynamic.sequences.tolist()
    torch.testing.assert_close(static.class_scores, dynamic.class_scores, rtol=0, atol=1e-6)


def test_without_cache_equals_with_cache(model):
    pictures = make_pictures()
    without = greedy(model, pixel_values=pictures, use_cache=False)
    assert without.sequences.tolist() == greedy(model, pixel_values=pictures).sequences.tolist()


def test_beam_scores_are_the_likelihoods_of_their_sequences(model):
    pictures = make_pictures()
    beams = greedy(model, pixel_values=pictures, num_beams=4, num_return_sequences=2, output_scores=True)
    assert beams.sequences.shape == (4, 16) and beams.class_scores.shape == (4, 3)
    tokens = beams.sequences.unflatten(0, (2, 2))  # two beams for each picture, without copies of the picture
    logits = model(pictures, decoder_input_ids=tokens[..., :-1]).logits.log_softmax(-1)
    likelihoods = logits.gather(-1, beams.sequences[:, 1:, None]).sum((1, 2))
    torch.testing.assert_close(beams.sequences_scores, likelihoods / 15, rtol=0, atol=1e-4)
    assert (beams.sequences_scores[::2] > beams.sequences_scores[1::2]).all()


def test_batch_equals_singles_and_encoded_pictures_are_reused(model):
    pictures = make_pictures(3)
    output = greedy(model, pixel_values=pictures)
    for row in range(3):
        assert greedy(model, pixel_values=pictures[[row]]).sequences[0].tolist() == output.sequences[row].tolist()
    encoded = model.get_encoder()(pictures)
    reused = model.generate(
        encoder_outputs=encoded,
        decoder_input_ids=torch.full((3, 1), 10),
        do_sample=False,
        max_new_tokens=15,
    )
    assert reused.sequences.tolist() == output.sequences.tolist()


def test_streamer_receives_every_token(model):
    class Collector(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    collector = Collector()
    output = greedy(model, pixel_values=make_pictures(1), streamer=collector)
    assert collector.tokens == output.sequences[0].tolist() and collector.ended


def test_a_cache_can_be_continued(model):
    pictures = make_pictures()
    whole = greedy(model, pixel_values=pictures, max_new_tokens=8)
    half = greedy(model, pixel_values=pictures, max_new_tokens=5)
    rest = greedy(
        model,
        pixel_values=pictures,
        decoder_input_ids=half.sequences,
        cache=half.cache,
        max_new_tokens=3,
    )
    assert rest.sequences.tolist() == whole.sequences.tolist()


def test_nucleus_keeps_the_largest_set_at_or_below_p():
    logits = torch.tensor([[0.35, 0.3, 0.2, 0.15]]).log()
    kept = {p: (top_logits(logits, p=p) > -1e9)[0].tolist() for p in (0.1, 0.4, 0.66, 0.9, 1.0)}
    assert kept[0.1] == [True, False, False, False]  # nothing fits: the best token
    assert kept[0.4] == [True, False, False, False]  # the library's rule would keep two
    assert kept[0.66] == [True, True, False, False]
    assert kept[0.9] == [True, True, True, False]
    assert kept[1.0] == [True] * 4
    assert (top_logits(logits, k=2) > -1e9)[0].tolist() == [True, True, False, False]
    ties = torch.zeros(1, 4)
    assert (top_logits(ties, p=0.3) > -1e9).all()  # ties with the last one kept stay


def test_sampling_draws_from_the_reference_nucleus(model):
    torch.manual_seed(0)
    pictures = make_pictures(1)
    logits = model(pictures, decoder_input_ids=torch.tensor([[10]])).logits[:, -1]
    allowed = set((top_logits(logits, p=0.3) > -1e9)[0].nonzero().flatten().tolist())
    output = model.generate(
        pictures, top_p=0.3, do_sample=True, max_new_tokens=1, num_return_sequences=200, return_dict_in_generate=True
    )
    drawn = set(output.sequences[:, 1].tolist())
    assert drawn <= allowed and len(drawn) > 1


def test_generation_config_is_saved_with_its_tasks(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    settings = loaded.generation_config.task_settings["10"]
    assert settings["top_p"] == 0.4 and settings["top_k"] == 0 and settings["max_new_tokens"] == 25
    assert loaded.generate(make_pictures()).class_scores.shape == (2, 5)


def test_unknown_task_in_the_config():
    with pytest.raises(ValueError, match="unknown task 'juggling'"):
        build_generation_config(make_config(tasks=["juggling"]))


@pytest.mark.slow
def test_compiled_generation_with_a_static_cache(model):
    from transformers import CompileConfig

    pictures = make_pictures()
    compile_config = CompileConfig(fullgraph=True, dynamic=False)
    compile_config._compile_all_devices = True
    compiled = greedy(model, pixel_values=pictures, cache_implementation="static", compile_config=compile_config)
    assert hasattr(model, "_compiled_call")
    assert compiled.sequences.tolist() == greedy(model, pixel_values=pictures).sequences.tolist()


def coordinates_and_classes(output):
    slots = output.sequences[:, 1:].unflatten(1, (-1, 5))
    return slots[..., :4], slots[..., 4]


def test_a_named_task_follows_its_grammar(model):
    output = greedy(model, pixel_values=make_pictures(), task="object_detection")
    coordinates, classes = coordinates_and_classes(output)
    assert ((coordinates >= 1000) & (coordinates < 2000)).all()
    assert ((classes == 30) | ((classes > 100) & (classes < 1000))).all()
    labels, scores = written_out_classes(model, make_pictures(), output.sequences)
    assert output.class_labels.tolist() == labels.tolist()
    torch.testing.assert_close(output.class_scores, scores, rtol=0, atol=1e-6)
    free = greedy(model, pixel_values=make_pictures(), task="object_detection", grammar=None)
    assert free.sequences.tolist() == greedy(model, pixel_values=make_pictures()).sequences.tolist()
    assert free.sequences.tolist() != output.sequences.tolist()


@pytest.mark.parametrize("task", [None, "object_detection"])
def test_the_fast_loop_equals_the_librarys(model, task):
    for seed in range(5):
        pictures = make_pictures(3, seed=seed)
        fast = greedy(model, pixel_values=pictures, task=task)
        plain = greedy(model, pixel_values=pictures, task=task, output_logits=True)  # the library's loop keeps logits
        assert plain.logits is not None
        assert fast.sequences.tolist() == plain.sequences.tolist()
        assert fast.class_labels.tolist() == plain.class_labels.tolist()
        torch.testing.assert_close(fast.class_scores, plain.class_scores, rtol=0, atol=1e-5)


def test_beams_follow_the_grammar_too(model):
    output = greedy(model, pixel_values=make_pictures(), task="object_detection", num_beams=3)
    coordinates, _ = coordinates_and_classes(output)
    assert ((coordinates >= 1000) & (coordinates < 2000)).all()
    assert output.class_labels.shape == (2, 3)


def test_classes_narrow_what_is_found(model):
    pictures = make_pictures(3)
    output = greedy(model, pixel_values=pictures, task="object_detection", classes=["car", 90], max_new_tokens=25)
    assert set(output.class_labels.unique().tolist()) <= {3, 90}
    assert set(coordinates_and_classes(output)[1].unique().tolist()) <= {30, 103, 190}
    logits = model(pictures, decoder_input_ids=output.sequences[:, :-1]).logits[:, 4::5]
    scores = logits.softmax(-1)[..., [103, 190]].amax(-1)  # of the whole vocabulary, not of the two classes
    torch.testing.assert_close(output.class_scores, scores, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="unknown class 'cat': the model knows car, person, toothbrush"):
        model.generate(pictures, task="object_detection", classes=["cat"])


def test_limits_and_unknown_tasks(model):
    assert greedy(model, pixel_values=make_pictures(), max_new_tokens=None, max_objects=2).sequences.shape == (2, 11)
    model.config.tasks = ["captioning"]
    try:
        with pytest.raises(ValueError, match=r"not trained for 'object_detection'.*captioning"):
            model.generate(make_pictures(), task="object_detection")
    finally:
        model.config.tasks = ["object_detection"]
    with pytest.raises(ValueError, match="unknown task 'juggling'"):
        model.generate(make_pictures(), task="juggling")


def noise_positions(output):
    """Number of objects of each row up to its first noise."""
    classes = output.sequences[:, 5::5]
    is_noise = torch.nn.functional.pad(classes == 30, (0, 1), value=True)
    return (is_noise.int().argmax(1) + 1).clamp(max=classes.shape[1]).tolist()


def test_rows_that_end_leave_the_batch_without_changing_the_others():
    model, pictures = make_model(spread=3.0), make_pictures(6, seed=3)
    with torch.no_grad():
        for layer in model.model.decoder.layers:  # so that what is written depends on the picture
            layer.cross_attention.out_proj.weight.mul_(20)
            layer.cross_attention.q_proj.weight.mul_(5)
    settings = {"pixel_values": pictures, "task": "object_detection", "max_new_tokens": 60, "output_logits": True}
    with torch.no_grad():
        for _ in range(60):  # until noise is the best class now and then
            model.lm_head.bias[30] += 0.1
            whole = greedy(model, **settings)
            if len(set(noise_positions(whole))) > 2:
                break
    slots = noise_positions(whole)
    assert len(set(slots)) > 2, "the rows should end at different places"
    plain = greedy(model, stop_when_noise=True, **settings)
    settings["output_logits"] = False
    stopped = greedy(model, stop_when_noise=True, **settings)
    assert stopped.sequences.tolist() == plain.sequences.tolist()
    assert stopped.class_labels.tolist() == plain.class_labels.tolist()
    torch.testing.assert_close(stopped.class_scores, plain.class_scores, rtol=0, atol=1e-5)
    assert stopped.sequences.shape[1] == 1 + 5 * max(slots)
    for row, count in enumerate(slots):
        assert stopped.sequences[row, : 1 + 5 * count].tolist() == whole.sequences[row, : 1 + 5 * count].tolist()
        assert (stopped.sequences[row, 1 + 5 * count :] == 0).all()
        assert stopped.class_labels[row, :count].tolist() == whole.class_labels[row, :count].tolist()
        assert (stopped.class_scores[row, count:] == 0).all()


def test_choice_of_rows_keeps_whole_pictures():
    finished = torch.tensor([1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1], dtype=torch.bool)  # four pictures of three rows
    rows, pictures = choose_rows(finished, 4)
    assert pictures.tolist() == [1, 2]
    assert rows.tolist() == [3, 5, 6, 8]
    rows, pictures = choose_rows(finished[6:], 1)
    assert rows.tolist() == [0, 2] and pictures.tolist() == [0]
    assert len(choose_rows(torch.ones(4, dtype=torch.bool), 2)[0]) == 0


def test_no_prompts_give_no_sequences(model):
    output = model.generate(make_pictures(), decoder_input_ids=torch.zeros(2, 0, 6, dtype=torch.long))
    assert output.sequences.shape == (0, 6)


def test_greedy_decoding_of_a_task_with_samples_writes_each_row_once(model):
    settings = model.generation_config.task_settings["10"]
    settings["num_return_sequences"] = 4
    try:
        assert model.generate(make_pictures(), max_new_tokens=3).sequences.shape == (8, 4)
        assert model.generate(make_pictures(), max_new_tokens=3, do_sample=False).sequences.shape == (2, 4)
        assert model.generate(make_pictures(), max_new_tokens=3, num_beams=2).sequences.shape == (2, 4)
    finally:
        del settings["num_return_sequences"]


def test_packed_projections_are_the_layers_own(model):
    attention = model.model.decoder.layers[0].self_attention
    hidden_states = torch.randn(2, 3, model.config.decoder_hidden_size)
    expected = attention(hidden_states)[0]
    with attention.pack():
        torch.testing.assert_close(attention(hidden_states)[0], expected, rtol=0, atol=1e-6)
        assert attention.packed is not None
    assert attention.packed is None
    own, attention.v_proj = attention.v_proj, torch.nn.Linear(8, 8)  # an adapted layer is left to itself
    with attention.pack():
        assert attention.packed is None
    attention.v_proj = own
