"""A model that is small enough to be made in every test that needs one."""

import numpy as np
import torch
from PIL import Image

from pix2seq_hf import Pix2SeqConfig, Pix2SeqForObjectDetection, Pix2SeqProcessor
from pix2seq_hf.generation_pix2seq import build_generation_config

NAMES = {1: "person", 18: "dog", 90: "toothbrush"}


def tiny_config(**overrides) -> Pix2SeqConfig:
    """A ViT of one layer for pictures of 32 x 48 pixels, writing four objects; three names with gaps between them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {f"decoder_{name}": size for name, size in sizes.items()}
    options = {"image_size": (32, 48), "max_instances_per_image": 4, "id2label": NAMES}
    return Pix2SeqConfig(**{**sizes, **decoder, **options, **overrides})


def tiny_detector(favourite_label: int | None = None, **overrides) -> Pix2SeqForObjectDetection:
    """An untrained detector; the score of a class that it is given lies between 0.5 and 0.6, those of others near 0."""
    config = tiny_config(**overrides)
    torch.manual_seed(0)
    model = Pix2SeqForObjectDetection(config).eval()
    model.generation_config = build_generation_config(config)
    if favourite_label is not None:
        # The class token takes half of the probability everywhere: without a nucleus, coordinates come up beside it.
        model.generation_config.task_settings["10"]["top_p"] = 1.0
        with torch.no_grad():
            model.lm_head.bias[config.coord_vocab_shift : config.coord_vocab_shift + config.quantization_bins] = 1.0
            model.lm_head.bias[config.base_vocab_shift + favourite_label] = 8.6
    return model


def save_tiny_detector(folder, favourite_label: int | None = None, **overrides):
    """Save a detector and its processor; return both."""
    model = tiny_detector(favourite_label, **overrides)
    processor = Pix2SeqProcessor.from_config(model.config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def noise_picture(height: int = 40, width: int = 50, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
