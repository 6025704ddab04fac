"""A model of all four tasks, small enough to be made in every test that needs one, and a tokenizer of a few words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pix2seq_hf import TASKS, Pix2SeqConfig, Pix2SeqForConditionalGeneration, Pix2SeqProcessor
from pix2seq_hf.generation_pix2seq import build_generation_config

NAMES = {1: "person", 18: "dog", 90: "toothbrush"}
WORDS = "a the dog person toothbrush street on in with red".split()  # noqa: SIM905
CONTROL = ("<pad>", "</s>", "<unk>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Ten words; the ids of padding, end and unknown are those of the released tokenizer."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate([*CONTROL, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def multitask_config(**overrides) -> Pix2SeqConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    options = {
        **sizes,
        **{f"decoder_{name}": size for name, size in sizes.items()},
        "image_size": (48, 64),
        "max_position_embeddings": 160,
        "max_instances_per_image": 24,
        "max_points_per_object": 8,
        "max_caption_length": 6,
        "vocab_size": 3000 + len(CONTROL) + len(WORDS),
        "id2label": NAMES,
        "tasks": list(TASKS),
    }
    return Pix2SeqConfig(**{**options, **overrides})


def multitask_model(seed=0, has_settings=True, **overrides) -> Pix2SeqForConditionalGeneration:
    """An untrained model whose tokens depend on the picture; it takes most objects for persons or dogs."""
    config = multitask_config(**overrides)
    torch.manual_seed(seed)
    model = Pix2SeqForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(3.0)
        for label in (1, 18):
            model.lm_head.bias[config.base_vocab_shift + label] = 6.0
    if has_settings:
        model.generation_config = build_generation_config(config)
        model.generation_config.task_settings.get("10", {})["top_p"] = 1.0  # many different boxes
    return model


def multitask_processor(config, has_tokenizer=True) -> Pix2SeqProcessor:
    return Pix2SeqProcessor.from_config(config, caption_tokenizer=tiny_tokenizer() if has_tokenizer else None)


def save_multitask(folder, **overrides):
    """Save a model and its processor; return both."""
    model = multitask_model(**overrides)
    processor = multitask_processor(model.config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
