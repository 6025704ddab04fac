"""Pix2Seq for Hugging Face: vision as language, with the reference's weights and numbers.

Travels with a checkpoint (flat files that import only each other, torch, torchvision, transformers, numpy, Pillow):

    configuration_pix2seq       Pix2SeqConfig: encoder, decoder, vocabulary numbers
    modeling_pix2seq            encoder, decoder with cache, Pix2SeqModel and its heads
    modeling_pix2seq_resnet     the reference's ResNet in front of the encoder
    generation_pix2seq          the reference's nucleus rule, class scores, generation settings
    image_processing_pix2seq    pictures to pixels, boxes back to pictures
    tokenization_pix2seq        the vocabulary: reserved | class | coordinate | text
    processing_pix2seq          Pix2SeqProcessor and the table TASKS
    task_base, task_*           one file per task

Around them:

    data, evaluation, training  records and transforms; metrics; the Accelerate loop
    conversion                  released TensorFlow checkpoints to folders of this package
    export                      a checkpoint folder that carries its code
    registration                how the Auto classes know of all this
    pipelines, engine           `pipeline("pix2seq")`; all tasks on a batch of pictures
    given_boxes, streaming      objects that a user names; objects handed over while they are decoded
    results, visualization      what was found in a picture, and its drawing
    cli, prediction, demo       the command `pix2seq`
    default_model, box_model    the model in the box, a small one of all four tasks: `DEFAULT_MODEL`

`import pix2seq_hf` registers the Auto classes and imports nothing else: the names below load when they are used."""

import importlib

from .registration import register_auto_classes

__version__ = "0.1.0"

# public name -> the file that holds it
PUBLIC_NAMES = {
    "Pix2SeqConfig": "configuration_pix2seq",
    "Pix2SeqModel": "modeling_pix2seq",
    "Pix2SeqPreTrainedModel": "modeling_pix2seq",
    "Pix2SeqForConditionalGeneration": "modeling_pix2seq",
    "Pix2SeqForObjectDetection": "modeling_pix2seq",
    "Pix2SeqImageProcessor": "image_processing_pix2seq",
    "Pix2SeqImageProcessorPil": "image_processing_pix2seq",
    "Pix2SeqVocabulary": "tokenization_pix2seq",
    "Pix2SeqProcessor": "processing_pix2seq",
    "TASKS": "processing_pix2seq",
    "Pix2SeqPipeline": "pipelines",
    "Pix2SeqResult": "results",
    "Pix2SeqObject": "results",
    "ObjectStreamer": "streaming",
    "TaskOptions": "engine",
    "run_tasks": "engine",
    "load_rgb_image": "image_processing_pix2seq",
    "export_with_code": "export",
    "DEFAULT_MODEL": "default_model",
}

__all__ = ["__version__", *PUBLIC_NAMES]


def __getattr__(name: str):
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{PUBLIC_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *PUBLIC_NAMES})


register_auto_classes()
