"""Checkpoints of the reference implementation, converted both ways.

`names` is the table of names, `config` and `variables` convert, `checkpoint` reads TensorFlow's files, `released` and
`download` know the released checkpoints, `tokenizer` converts the SentencePiece model, `convert` is the command.
"""

from pix2seq_hf.conversion.config import config_from_reference, config_to_reference
from pix2seq_hf.conversion.variables import convert_variables, revert_variables

__all__ = ["config_from_reference", "config_to_reference", "convert_variables", "revert_variables"]
