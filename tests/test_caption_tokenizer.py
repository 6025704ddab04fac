"""Tokenizers of captions."""

import pytest

from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor
from pix2seq_hf.training.caption_tokenizer import load_caption_tokenizer, train_caption_tokenizer

CAPTIONS = ["A man rides a horse.", "A woman with a horse, and a dog!", "Zwei Hunde  am See\n", "Ein Café"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(CAPTIONS, 120)


def test_special_ids_are_those_of_the_released_checkpoints(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) <= 120


@pytest.mark.parametrize("caption", [*CAPTIONS, "A dog with a woman", "  a   horse am\tSee "])
def test_text_survives(tokenizer, caption):
    ids = tokenizer.encode(caption, add_special_tokens=False)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == " ".join(caption.split())


def test_frequent_words_are_one_token(tokenizer):
    assert len(tokenizer.encode("a horse", add_special_tokens=False)) == 2
    assert len(train_caption_tokenizer(CAPTIONS, 40).encode(CAPTIONS[1])) > len(tokenizer.encode(CAPTIONS[1]))


def test_unknown_characters_are_unknown(tokenizer):
    assert tokenizer.unk_token_id in tokenizer.encode("馬", add_special_tokens=False)


def test_it_is_the_same_every_time(tokenizer):
    assert train_caption_tokenizer(CAPTIONS, 120).get_vocab() == tokenizer.get_vocab()


def test_it_travels_with_the_processor(tokenizer, tmp_path):
    Pix2SeqProcessor(caption_tokenizer=tokenizer, vocab_size=3200).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for loaded in (
        Pix2SeqProcessor.from_pretrained(tmp_path / "model").caption_tokenizer,
        load_caption_tokenizer(tmp_path / "tokenizer"),
    ):
        assert loaded.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0]) and loaded.eos_token_id == 1


def test_what_cannot_be_done():
    with pytest.raises(ValueError, match="no caption to train a tokenizer on"):
        train_caption_tokenizer(["", " \n"], 100)
    with pytest.raises(ValueError, match=r"do not fit into captioning\.tokenizer_vocab_size 10"):
        train_caption_tokenizer(CAPTIONS, 10)
    with pytest.raises(OSError):
        load_caption_tokenizer("/nowhere/at/all")
