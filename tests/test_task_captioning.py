"""Captions to sequences and back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pix2seq_hf.task_base import Frame
from pix2seq_hf.task_captioning import Captioning, caption_tokens
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary

TASK = Captioning()
VOCABULARY = Pix2SeqVocabulary(vocab_size=4000)
TEXTS = ["a dog on a surfboard", "two dogs and a cat", "ein Hund auf der Straße", "一只狗", "🐕 on 🏄"]


def train_tokenizer(special=("<pad>", "</s>", "<unk>"), eos_token="</s>"):
    """Any text survives it: pairs of bytes are merged, and every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos_token)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_sequences_of_one_record(tokenizer):
    record = {"image_id": 7, "captions": ["a dog", "two dogs and a cat", "left out"]}
    options = {"tokenizer": tokenizer, "max_seq_len": 8, "captions_per_image": 2, "input_seq_drop_rate": 0}
    targets = TASK.targets(record, VOCABULARY, **options)
    first = [3000 + id for id in tokenizer.encode("a dog")] + [3001]
    assert targets.labels[0].tolist() == first + [0] * (8 - len(first))
    assert targets.decoder_input_ids[0].tolist() == [13] + first + [0] * (7 - len(first))
    assert targets.label_weights[0].tolist() == pytest.approx(
        [1.0] * (len(first) - 1) + [0.1] + [1.0] * (8 - len(first))
    )
    assert targets.labels.shape == (2, 8) and TASK.prompt().tolist() == [13]


def test_long_captions_are_cut_and_still_end(tokenizer):
    tokens = caption_tokens("a dog on a surfboard " * 20, tokenizer, VOCABULARY, 12)
    assert tokens[-1] == 3001 and (tokens[:-1] > 3002).all()
    assert tokens[:-1].tolist() == [3000 + id for id in tokenizer.encode("a dog on a surfboard " * 20)[:11]]
    assert caption_tokens("", tokenizer, VOCABULARY, 3).tolist() == [3001, 0, 0]


def test_pictures_with_few_captions_show_them_again(tokenizer):
    options = {"tokenizer": tokenizer, "max_seq_len": 16, "input_seq_drop_rate": 0}
    rows = TASK.targets({"captions": ["a dog", "a cat"]}, VOCABULARY, **options).labels
    assert rows.shape == (5, 16) and rows[2].equal(rows[0]) and rows[3].equal(rows[1]) and not rows[0].equal(rows[1])
    assert TASK.targets({"captions": "a dog"}, VOCABULARY, **options).labels[4].equal(rows[0])


def test_dropping_changes_what_is_read_only(tokenizer):
    record = {"captions": TEXTS}
    options = {"tokenizer": tokenizer, "max_seq_len": 100}
    first, again, other = (
        TASK.targets(record, VOCABULARY, np.random.default_rng(seed), **options) for seed in (0, 0, 1)
    )
    plain = TASK.targets(record, VOCABULARY, input_seq_drop_rate=0, **options)
    assert first.decoder_input_ids.equal(again.decoder_input_ids) and first.labels.equal(plain.labels)
    assert not first.decoder_input_ids.equal(other.decoder_input_ids)
    dropped = first.decoder_input_ids == 30
    assert 0.4 < dropped.float().mean() < 0.6
    assert first.decoder_input_ids[~dropped].equal(plain.decoder_input_ids[~dropped])
    with pytest.raises(ValueError, match="pass rng, or input_seq_drop_rate=0"):
        TASK.targets(record, VOCABULARY, **options)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"image_id": 7}, {}, "image 7 lacks captions, which captioning needs"),
        ({"image_id": 7, "captions": []}, {}, "image 7 has no caption"),
        ({"captions": ["a"]}, {"tokenizer": None}, "needs a caption tokenizer"),
        ({"captions": ["a"]}, {"tokenizer": train_tokenizer(eos_token=None)}, "no end token: set its eos_token"),
        ({"captions": ["a dog"]}, {"vocabulary": Pix2SeqVocabulary(vocab_size=3005)}, "leaves room for 5 below"),
        ({"captions": ["a dog"]}, {"vocabulary": Pix2SeqVocabulary(vocab_size=2000)}, "leaves room for 0 below"),
    ],
)
def test_impossible_targets_are_refused(tokenizer, record, options, message):
    options = {"vocabulary": VOCABULARY, "tokenizer": tokenizer, "rng": np.random.default_rng(0), **options}
    with pytest.raises(ValueError, match=message):
        TASK.targets(record, **options)


@settings(deadline=None)
@given(captions=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=4))
def test_captions_in_any_script_come_back(tokenizer, captions):
    captions = [caption.replace("<", "") for caption in captions]  # "</s>" in a text is the end token
    targets = TASK.targets(
        {"captions": captions}, VOCABULARY, tokenizer=tokenizer, max_seq_len=130, captions_per_image=len(captions),
        input_seq_drop_rate=0,
    )  # fmt: skip
    found = TASK.parse(targets.labels, None, VOCABULARY, tokenizer=tokenizer)
    assert found.texts == captions
    assert found.malformed == [{}] * len(captions)


def test_another_end_and_another_shift():
    """The end token is the tokenizer's own, wherever it stands in the vocabulary."""
    tokenizer = train_tokenizer(special=("<pad>", "<s>", "<unk>", "<end>"), eos_token="<end>")
    vocabulary = Pix2SeqVocabulary(vocab_size=3000, quantization_bins=400, text_vocab_shift=1500)
    options = {"tokenizer": tokenizer, "max_seq_len": 20, "input_seq_drop_rate": 0, "captions_per_image": 1}
    targets = TASK.targets({"captions": ["two dogs"]}, vocabulary, **options)
    end = (targets.labels[0] == 1503).nonzero()
    assert len(end) == 1 and targets.label_weights[0][end[0]].item() == pytest.approx(0.1)
    assert TASK.parse(targets.labels, None, vocabulary, tokenizer=tokenizer).texts == ["two dogs"]


int64 = st.one_of(st.integers(-50, 4100), st.sampled_from([0, 3000, 3001]), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None)
@given(rows=st.integers(0, 3), length=st.integers(0, 9), data=st.data())
def test_no_stream_raises(tokenizer, rows, length, data):
    tokens = data.draw(st.lists(int64, min_size=rows * length, max_size=rows * length))
    sequences = torch.tensor(tokens, dtype=torch.int64).reshape(rows, length)
    frames = [Frame(row, None, (64, 64)) for row in range(rows)]
    processor = SimpleNamespace(vocabulary=VOCABULARY, caption_tokenizer=tokenizer)
    results = TASK.results(sequences, {}, frames, processor)
    assert [len(result["captions"]) for result in results] == [1] * rows
    assert all(isinstance(result["captions"][0], str) for result in results)


def test_text_ends_at_the_end_token(tokenizer):
    a, dog = ([3000 + id for id in tokenizer.encode(text)] for text in ("a", " dog"))
    rows = [
        a + [3001] + dog,
        a + dog + [0],
        [3001],
        [0] * 3,
        a + [1500, -7, 3999] + dog + [3001],
        a + [0] + dog + [3001],
    ]
    length = max(map(len, rows))
    sequences = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    found = TASK.parse(sequences, None, VOCABULARY, tokenizer=tokenizer)
    assert found.texts[:4] == ["a", "a dog", "", ""] and found.texts[5] == "a dog"
    assert found.malformed[0] == {"after_end": len(dog)} and found.malformed[2] == {}
    assert set(found.malformed[1]) == set(found.malformed[3]) == {"text", "unfinished"}
    assert found.malformed[4] == {"out_of_vocabulary": 1, "text": 2}
    assert found.malformed[5] == {"text": 1}


def test_several_sequences_per_picture(tokenizer):
    texts = ["a", "a dog", "two dogs", "a cat"]
    sequences = torch.stack([caption_tokens(text, tokenizer, VOCABULARY, 20) for text in texts])
    frames = [Frame(number, (5, 5), (64, 64)) for number in range(2)]
    processor = SimpleNamespace(vocabulary=VOCABULARY, caption_tokenizer=tokenizer)
    results = TASK.results(sequences, {}, frames, processor)
    assert results == [{"captions": texts[:2], "malformed": {}}, {"captions": texts[2:], "malformed": {}}]


def test_defaults_and_limits_come_from_the_configuration():
    config = SimpleNamespace(max_caption_length=20, text_vocab_shift=3000, vocab_size=3010, eos_token_id=None)
    assert TASK.generation_settings(config) == {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 20, "eos_token_id": 3001,
    }  # fmt: skip
    assert TASK.target_options(config) == {"max_seq_len": 20}
    assert TASK.grammar(config).words == tuple(range(3000, 3010)) and TASK.grammar(config).end == 3001
    for end in (3005, [3005, 3006]):
        other = SimpleNamespace(**{**vars(config), "eos_token_id": end})
        assert TASK.generation_settings(other)["eos_token_id"] == 3005
        assert TASK.grammar(other, allowed_tokens=[3007]).words == (3005, 3007)
