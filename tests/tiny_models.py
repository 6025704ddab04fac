"""Small random models that several test files build."""

import torch

from pix2seq_hf import Pix2SeqConfig, Pix2SeqForConditionalGeneration

SIZES = {
    "image_size": (48, 32),
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 96,
    "vocab_size": 2100,
    "max_position_embeddings": 64,
    "max_instances_per_image": 5,
    "resnet_depth": 18,
    "resnet_width_multiplier": 0.125,
    "id2label": {1: "person", 3: "car", 90: "toothbrush"},
}


def make_config(**overrides) -> Pix2SeqConfig:
    return Pix2SeqConfig(**{**SIZES, **overrides})


def make_model(model_class=Pix2SeqForConditionalGeneration, seed=0, spread=1.0, **overrides):
    """A model in evaluation mode; a `spread` above 1 makes attention and logits uneven, so that tokens differ."""
    torch.manual_seed(seed)
    model = model_class(make_config(**overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(spread)
    return model


def make_pictures(batch=2, seed=1, height=48, width=32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def make_tokens(*shape, seed=2, low=100, high=2000) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
