"""Which `tokenizers` tokenizer gives the ids of a SentencePiece model."""

import os
from pathlib import Path

from pix2seq_hf.conversion.checkpoint import INSTALL_HINT

UNIGRAM = 1  # a kind of model
USER_DEFINED = 4  # a kind of piece
# What SentencePiece writes for an unknown piece
UNKNOWN_SURFACE = " \u2047 "


def convert_tokenizer(path: str | os.PathLike):
    r"""Convert a SentencePiece model to a tokenizer of the library.

    Args:
        path (`str` or `os.PathLike`): A SentencePiece `.model` file of the unigram kind.
    Returns:
        [`PreTrainedTokenizerFast`]: Its ids are SentencePiece's, with the end token appended as the reference does
        (`add_special_tokens=False` leaves it out); its text is SentencePiece's.
    Raises:
        ImportError: If SentencePiece is not installed.
        ValueError: If the file is not such a model."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    model = _read_model(Path(path))
    trainer, rules = model.trainer_spec, model.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    steps = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if rules.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    unknown = model.pieces[trainer.unk_id].piece
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(unknown, UNKNOWN_SURFACE), decoders.Metaspace(prepend_scheme=scheme, split=False)]
    )
    end = model.pieces[trainer.eos_id].piece
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, trainer.eos_id)]
    )
    tokenizer.add_tokens(
        [AddedToken(piece.piece, normalized=False) for piece in model.pieces if piece.type == USER_DEFINED]
    )
    special = {"eos_token": end}
    if trainer.pad_id >= 0:
        special["pad_token"] = model.pieces[trainer.pad_id].piece
    # No unk_token: it would be a special token, which decoding leaves out, where the reference writes a sign for it.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, padding_side="right", **special
    )


def _read_model(path: Path):
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(f"converting {path} needs SentencePiece and protobuf: {INSTALL_HINT} ({error})") from error
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error})") from error
    trainer = model.trainer_spec
    if not model.pieces or trainer.model_type != UNIGRAM or min(trainer.unk_id, trainer.eos_id) < 0:
        raise ValueError(f"{path} is not a SentencePiece model of the unigram kind with an unknown and an end piece")
    return model
