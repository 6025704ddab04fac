"""From the reference's arrays to our state dict, and back, with nothing left over on either side."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from pix2seq_hf.conversion.names import KEY_SUFFIX, list_variables


def convert_variables(variables: Mapping[str, np.ndarray], config) -> dict[str, torch.Tensor]:
    r"""Convert the variables of a reference network to the state dict of ours.

    Args:
        variables (`Mapping[str, np.ndarray]`):
            The arrays by checkpoint key; the suffix `/.ATTRIBUTES/VARIABLE_VALUE` may stay. Only keys that start with
            `model/` may be there (see [`read_model_variables`]).
        config ([`Pix2SeqConfig`]): Of the same network (see [`config_from_reference`]).
    Returns:
        `dict[str, torch.Tensor]`: Complete for [`Pix2SeqForConditionalGeneration`] with `strict=True`. Tied embeddings
        are there under both of their names, as one tensor.
    Raises:
        ValueError: If a variable is missing, is left over, or has another shape; the message names it."""
    variables = {key.removesuffix(KEY_SUFFIX): array for key, array in variables.items()}
    rows = list_variables(config)
    _refuse_difference(
        {row.reference for row in rows},
        variables,
        "the checkpoint lacks {names}, which this configuration needs",
        "the checkpoint holds {names}, which this configuration has no place for",
    )
    shapes = expected_shapes(config)
    state_dict = {}
    for row in rows:
        array = row.to_ours(np.asarray(variables[row.reference]))
        if array.shape != shapes[row.ours]:
            raise ValueError(
                f"the variable {row.reference!r} has the shape {np.shape(variables[row.reference])}, which becomes "
                f"{array.shape} for {row.ours!r}; this configuration needs {shapes[row.ours]}"
            )
        state_dict[row.ours] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))  # copies
    if config.tie_word_embeddings:
        state_dict["lm_head.weight"] = state_dict["model.decoder.token_embeddings.weight"]
    return state_dict


def revert_variables(state_dict: Mapping[str, torch.Tensor], config) -> dict[str, np.ndarray]:
    r"""Convert the state dict of our network to the variables of the reference's; undoes [`convert_variables`].

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Of [`Pix2SeqForConditionalGeneration`].
        config ([`Pix2SeqConfig`]): Of the same network.
    Returns:
        `dict[str, np.ndarray]`: float32 arrays by checkpoint key without `/.ATTRIBUTES/VARIABLE_VALUE`.
    Raises:
        ValueError: If a tensor is missing, is left over, or has another shape; the message names it."""
    state_dict = dict(state_dict)
    if config.tie_word_embeddings:
        output = state_dict.pop("lm_head.weight", None)
        if output is not None and not torch.equal(output, state_dict["model.decoder.token_embeddings.weight"]):
            raise ValueError("'lm_head.weight' differs from the token embeddings, but tie_word_embeddings is True")
    rows = list_variables(config)
    _refuse_difference(
        {row.ours for row in rows},
        state_dict,
        "the state dict lacks {names}, which this configuration needs",
        "the state dict holds {names}, which the reference has no place for",
    )
    shapes = expected_shapes(config)
    variables = {}
    for row in rows:
        tensor = state_dict[row.ours]
        if tuple(tensor.shape) != shapes[row.ours]:
            raise ValueError(
                f"the tensor {row.ours!r} has the shape {tuple(tensor.shape)}; "
                f"this configuration needs {shapes[row.ours]}"
            )
        array = row.to_reference(tensor.detach().to("cpu", torch.float32).numpy())
        variables[row.reference] = np.array(array, order="C")
    return variables


def expected_shapes(config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of our network by name, without allocating the network."""
    from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration

    with torch.device("meta"):
        model = Pix2SeqForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_difference(expected: Iterable[str], found: Iterable[str], lacking: str, left_over: str):
    """Raise one ValueError that names what is missing and what is left over."""
    expected, found = set(expected), set(found)
    problems = [
        text.format(names=_join(names))
        for text, names in ((lacking, expected - found), (left_over, found - expected))
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _join(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    listed = ", ".join(map(repr, names[:limit]))
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more ({len(names)} in all)"


__all__ = ["convert_variables", "expected_shapes", "revert_variables"]
