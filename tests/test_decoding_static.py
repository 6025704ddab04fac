"""Steps in fixed memory write what the loop writes: computed on any device, and captured where there is CUDA."""

import gc
import random
import threading
import weakref

import pytest
import torch
from transformers import CompileConfig

from pix2seq_hf import TASKS, decoding_pix2seq_static, generation_pix2seq
from pix2seq_hf.decoding_pix2seq_static import KEPT, MIN_STEPS, DelayedLook, round_up
from pix2seq_hf.grammar_pix2seq import TextGrammar
from test_decoding import PER_CALL, random_question
from tiny_models import make_pictures
from tiny_multitask import multitask_config, multitask_model

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")),
]
needs_cuda = DEVICES[1].marks[0]


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """What static decoding returned, call by call; on a processor it is used here only."""
    outputs = []

    def decode_static(*args):
        outputs.append(decoding_pix2seq_static.decode_static(*args))
        return outputs[-1]

    monkeypatch.setattr(decoding_pix2seq_static, "STATIC_DEVICES", {"cpu", "cuda"})
    monkeypatch.setattr(generation_pix2seq, "decode_static", decode_static)
    return outputs


def assert_same(found, expected):
    """Tokens equal, probabilities nearly."""
    assert found.keys() - {"cache"} == expected.keys() - {"cache"}
    assert found.sequences.equal(expected.sequences)
    for name in ("class_labels", "is_invisible"):
        assert found.get(name) is None or found[name].equal(expected[name])
    for name in ("class_scores", "token_scores"):
        if found.get(name) is not None:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def question(task, num_pictures=2, device="cpu", **options):
    """Arguments of `generate`, more tokens than are too few."""
    rng = random.Random(num_pictures)
    asked = random_question(rng, task, multitask_config())
    asked["pixel_values"] = make_pictures(num_pictures, height=48, width=64)
    if TASKS[task].needs_boxes:
        asked["decoder_input_ids"] = asked["decoder_input_ids"][:1, :3].expand(num_pictures, -1, -1)
    if task == "object_detection":
        asked["max_objects"] = 6
    if task == "instance_segmentation":
        asked["max_points"] = 8
    if task == "captioning":
        asked["max_new_tokens"] = 12
    asked = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in asked.items()}
    return {**asked, "return_dict_in_generate": True, **options}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("how", ["greedy", "sampled"])
def test_all_tasks(task, how, device, used):
    torch.manual_seed(0)
    model = multitask_model(1, decoder_num_hidden_layers=2).to(device)
    for num_pictures in (1, 3):  # three are rounded up
        choices = {"do_sample": False, "num_return_sequences": 1}
        if how == "sampled":
            choices = {"do_sample": True, "num_return_sequences": 3, "top_k": 20, "temperature": 0.9}
            choices["seeds"] = list(range(num_pictures))
        asked = question(task, num_pictures, device, **choices)
        expected = model.generate(**asked, disable_compile=True)
        assert used.pop() is None
        for _ in range(2):  # the second call uses what the first one kept
            assert_same(model.generate(**asked), expected)
            assert used.pop() is not None
    assert len(KEPT[model].decoders) == 2
    if device == "cuda":
        graphs = [decoder.graphs for decoder in KEPT[model].decoders.values()]
        assert all(graphs), "nothing was captured"


@pytest.mark.parametrize("device", DEVICES)
def test_random_questions(device, used):
    rng = random.Random(0)
    torch.manual_seed(0)
    models = [multitask_model(seed, decoder_num_hidden_layers=1 + seed).to(device) for seed in range(2)]
    num_sequences = 0
    for _ in range(24):
        model, task = rng.choice(models), rng.choice(list(TASKS))
        asked = random_question(rng, task, model.config)
        asked |= {"do_sample": False, "num_return_sequences": 1, "return_dict_in_generate": True}
        asked = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in asked.items()}
        expected = model.generate(**asked, disable_compile=True)
        found = model.generate(**asked)
        assert_same(found, expected)
        num_sequences += len(found.sequences) if used[-1] is not None else 0
    assert num_sequences > 4 * PER_CALL


@pytest.mark.parametrize("device", DEVICES)
def test_rows_end_at_different_places(device, used):
    model = multitask_model().to(device)
    with torch.no_grad():
        model.lm_head.bias[30] = 5.5  # noise, which ends a row
    asked = question("object_detection", 6, device, max_objects=20, stop_when_noise=True, classes=None)
    asked |= {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 2.0, "seeds": list(range(6))}
    expected = model.generate(**asked, disable_compile=True)
    found = model.generate(**asked)
    assert_same(found, expected)
    ends = (found.sequences == 0).int().argmax(1)
    assert used[-1] is not None and len(ends.unique()) > 2


@pytest.mark.parametrize("device", DEVICES)
def test_it_stops_soon_after_the_last_row_has_ended(device, used, monkeypatch):
    model = multitask_model().to(device)
    with torch.no_grad():
        model.lm_head.bias[30] = 100.0
    steps = []
    advance = decoding_pix2seq_static.StaticDecoder.advance
    monkeypatch.setattr(
        decoding_pix2seq_static.StaticDecoder, "advance", lambda self, step: (steps.append(step), advance(self, step))
    )
    asked = question("object_detection", 3, device, max_objects=20, stop_when_noise=True, classes=None)
    found = model.generate(**asked, do_sample=False)
    assert found.sequences.shape == (3, 6) and found.class_labels.shape == (3, 1)
    assert used[-1] is not None and 4 < steps[-1] < 25


@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_change_between_calls(device, used):
    model = multitask_model(2).to(device)
    asked = [question(task, device=device, do_sample=False) for task in ("object_detection", "instance_segmentation")]

    def check():
        found = [model.generate(**each) for each in asked]
        for each, output in zip(asked, found, strict=True):
            assert_same(output, model.generate(**each, disable_compile=True))
        return [output.sequences for output in found]

    before = check()
    kept = [*KEPT[model].decoders.values()]
    model.load_state_dict(multitask_model(3).state_dict())  # in place
    after = check()
    assert any(not one.equal(other) for one, other in zip(before, after))
    assert [*KEPT[model].decoders.values()] == kept
    for part in (model.model.decoder.layers[0].mlp.fc1, model.lm_head):  # new memory
        part.weight = torch.nn.Parameter(part.weight.detach() * 2)
    again = check()
    assert any(not one.equal(other) for one, other in zip(after, again))
    assert not set(KEPT[model].decoders.values()) & set(kept)
    model.double()
    check()


def test_settings_do_not_mix(used):
    model = multitask_model(2)
    asked = question("object_detection", do_sample=True, seeds=[1, 2], top_k=0, top_p=1.0)
    for options in ({"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"classes": ["dog"]}, {"classes": None}):
        both = {**asked, **options}
        assert_same(model.generate(**both), model.generate(**both, disable_compile=True))
    assert len(KEPT[model].decoders) == 5


def test_a_cache_can_be_continued(used):
    model = multitask_model()
    pictures = make_pictures(3, height=48, width=64)
    options = {"pixel_values": pictures, "task": "object_detection", "do_sample": False, "grammar": None}
    options |= {"return_dict_in_generate": True, "eos_token_id": None}
    whole = model.generate(**options, max_new_tokens=20)
    half = model.generate(**options, max_new_tokens=10)
    assert used[-1] is not None
    rest = model.generate(**options, decoder_input_ids=half.sequences, cache=half.cache, max_new_tokens=10)
    assert rest.sequences.equal(whole.sequences)


def test_without_seeds_torch_draws(used):
    model = multitask_model()
    asked = question("object_detection", do_sample=True, top_k=0, top_p=1.0, temperature=2.0)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(**asked).sequences)
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2]) and used[-1] is not None


def test_tensors_stay_ordinary(used):
    model = multitask_model()
    asked = question("object_detection", do_sample=False)
    with torch.inference_mode():
        model.generate(**asked)
    found = model.generate(**asked)  # writes to the same tensors
    assert not found.sequences.is_inference() and not found.class_scores.is_inference()


class OwnGrammar(TextGrammar):
    """A grammar that promises nothing."""

    def slot(self, step):
        return None


def test_what_cannot_be_repeated_is_left_to_the_loop(used):
    model = multitask_model()
    asked = question("captioning", do_sample=False)
    cases = {
        "few tokens": {"max_new_tokens": MIN_STEPS - 1},
        "a grammar without slots": {"grammar": OwnGrammar(range(3000, 3010), 3001)},
        "not wanted": {"disable_compile": True},
    }
    for reason, options in cases.items():
        model.generate(**{**asked, **options})
        assert used.pop() is None, reason
    with pytest.raises(ValueError, match="longer than the model's 160 positions"):
        model.generate(**{**asked, "task": "object_detection", "max_new_tokens": 161})
    assert used.pop() is None
    model.generate(**{**asked, "task": "object_detection", "max_new_tokens": 160})
    assert used.pop() is not None
    handle = model.model.decoder.norm.register_forward_hook(lambda *args: None)
    model.generate(**asked)
    assert used.pop() is None
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(**asked)
    assert used.pop() is None
    fc1 = model.model.decoder.layers[0].mlp.fc1
    model.model.decoder.layers[0].mlp.fc1 = torch.nn.Linear(fc1.in_features, fc1.out_features)
    model.generate(**asked)
    assert used.pop() is None
    model.model.decoder.layers[0].mlp.fc1 = fc1
    model.generate(**asked)
    assert used.pop() is not None


def test_only_one_thread_at_a_time(used):
    model = multitask_model()
    asked = question("object_detection", do_sample=False)
    expected = model.generate(**asked)
    found = []
    with KEPT[model].lock:
        thread = threading.Thread(target=lambda: found.append(model.generate(**asked)))
        thread.start()
        thread.join()
    assert used[-1] is None
    assert_same(found[0], expected)


def test_what_is_kept_leaves_with_the_model(used):
    model = multitask_model()
    model.generate(**question("object_detection", do_sample=False))
    model_reference, decoder = weakref.ref(model), weakref.ref(next(iter(KEPT[model].decoders.values())))
    del model
    used.clear()
    gc.collect()
    assert model_reference() is None and decoder() is None


def test_few_shapes_are_kept(used, monkeypatch):
    monkeypatch.setattr(decoding_pix2seq_static, "MAX_KEPT", 2)
    model = multitask_model()
    for number in (1, 2, 4, 1):
        model.generate(**question("object_detection", number, do_sample=False))
    assert [decoder.shape[0] for decoder in KEPT[model].decoders.values()] == [4, 1]


def test_counts_are_rounded_up():
    sizes = [round_up(count) for count in range(1, 2000)]
    assert all(size >= count for count, size in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert sorted(set(sizes))[:12] == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192]


@pytest.mark.parametrize("device", DEVICES)
def test_a_look_sees_the_flag_of_the_look_before(device):
    look = DelayedLook()
    flags = [torch.tensor(flag, device=device) for flag in (False, True, False, False)]
    assert [look.was_true(flag) for flag in flags] == [False, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_step(device, used):
    model = multitask_model(1).to(device)
    asked = question("object_detection", 3, device, do_sample=False)
    expected = model.generate(**asked, disable_compile=True)
    found = model.generate(**asked, compile_config=CompileConfig(fullgraph=True, dynamic=False))
    assert used[-1] is not None
    assert_same(found, expected)
    if device == "cuda":
        assert all(decoder.graphs for decoder in KEPT[model].decoders.values())


@needs_cuda
def test_the_host_does_not_wait_for_single_tokens(used):
    model = multitask_model().cuda()
    asked = question("object_detection", 2, "cuda", do_sample=True, top_k=0, seeds=[0, 1], max_objects=20)
    for _ in range(2):
        model.generate(**asked)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as waits:
            model.generate(**asked)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [wait for wait in waits if "synchroniz" in str(wait.message)]
    assert used[-1] is not None and len(waits) < 25  # of a hundred tokens; those around the loop too


@needs_cuda
def test_without_graphs_steps_are_computed(used, monkeypatch):
    model = multitask_model().cuda()
    asked = question("object_detection", 2, "cuda", do_sample=False)
    expected = model.generate(**asked, disable_compile=True)
    read = decoding_pix2seq_static.StaticDecoder.compute

    def wait(self, step):
        torch.cuda.synchronize()  # not allowed in a capture
        read(self, step)

    monkeypatch.setattr(decoding_pix2seq_static.StaticDecoder, "compute", wait)
    with pytest.warns(UserWarning, match="capturing failed") as warned:
        assert_same(model.generate(**asked), expected)
    assert len([each for each in warned if "capturing failed" in str(each.message)]) == 1
    assert_same(model.generate(**asked), expected)
    assert used[-1] is None  # the loop is as fast then


@needs_cuda
def test_graphs_in_bfloat16_are_faster_than_the_loop():
    model = multitask_model(decoder_num_hidden_layers=6).cuda().to(torch.bfloat16)
    asked = question("object_detection", 2, "cuda", do_sample=False, max_objects=24)

    def milliseconds(**options):
        times = []
        for _ in range(4):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            model.generate(**asked, **options)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return min(times[1:])

    assert milliseconds() < milliseconds(disable_compile=True) / 2
