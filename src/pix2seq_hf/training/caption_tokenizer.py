"""Where does the tokenizer of captions come from: a folder or file of the user's, or the captions themselves."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as in the released checkpoints


def train_caption_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    r"""Train a tokenizer on captions, with the reference's special ids.

    Args:
        captions (`Iterable[str]`): The texts; runs of blanks count as one blank.
        vocab_size (`int`): Most words, the special ones included. There are fewer if the captions give no more.
    Returns:
        `PreTrainedTokenizerFast`: Byte pair encoding over pieces that begin with a blank; padding 0, end 1, unknown 2.
    Raises:
        ValueError: If there is no text, or it has more characters than `vocab_size` has room for."""
    captions = list(captions)
    characters = {character for caption in captions for character in "".join(caption.split())}
    if not characters:
        raise ValueError("there is no caption to train a tokenizer on")
    if len(characters) + 4 > vocab_size:  # the special words, and the blank
        raise ValueError(
            f"the captions have {len(characters)} different characters, which do not fit into captioning."
            f"tokenizer_vocab_size {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PADDING, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def load_caption_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    r"""Load the tokenizer that a recipe names.

    Args:
        path (`str` or `Path`): A folder, or a name on the Hub, of a `transformers` tokenizer.
    Raises:
        OSError: If there is none."""
    return AutoTokenizer.from_pretrained(path)
