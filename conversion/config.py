"""Which configuration of ours is the reference's `config.json`, and back."""

from collections.abc import Mapping

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.conversion.coco_labels import COCO_ID2LABEL

MODEL_NAME = "encoder_ar_decoder"
TASK_IDS = {"object_detection": 10, "instance_segmentation": 11, "keypoint_detection": 12, "captioning": 13}
BASE_VOCAB_SHIFT = 100  # a constant of the reference's vocabulary
REQUIRED = object()

# (key of the reference's `model` section, our field, value when an older config.json lacks the key)
MODEL_FIELDS = (
    ("image_size", "image_size", REQUIRED),
    ("patch_size", "patch_size", 16),
    ("resnet_variant", "resnet_variant", "c1"),
    ("resnet_depth", "resnet_depth", 50),
    ("resnet_width_multiplier", "resnet_width_multiplier", 1),
    ("resnet_sk_ratio", "resnet_sk_ratio", 0.0),
    ("dim_att", "hidden_size", REQUIRED),
    ("num_encoder_layers", "num_hidden_layers", REQUIRED),
    ("num_heads", "num_attention_heads", REQUIRED),
    ("dim_att_dec", "decoder_hidden_size", REQUIRED),
    ("num_decoder_layers", "decoder_num_hidden_layers", REQUIRED),
    ("num_heads_dec", "decoder_num_attention_heads", REQUIRED),
    ("pos_encoding", "position_encoding", "sin_cos"),
    ("pos_encoding_dec", "text_position_encoding", "learned"),
    ("use_cls_token", "use_class_token", False),
    ("dec_proj_mode", "projection_mode", "mlp"),
    ("decoder_output_bias", "use_output_bias", True),
    ("shared_decoder_embedding", "tie_word_embeddings", True),
    ("drop_path", "drop_path_rate", 0.1),
    ("drop_units", "drop_units_rate", 0.1),
    ("drop_att", "drop_attention_rate", 0.0),
    ("vocab_size", "vocab_size", REQUIRED),
    ("max_seq_len", "max_position_embeddings", 512),
    ("coord_vocab_shift", "coord_vocab_shift", 1000),
    ("text_vocab_shift", "text_vocab_shift", 3000),
)
# The reference gives the width of an MLP as a whole multiple of the attention's: (key, key of the width, our field)
MLP_FIELDS = (
    ("dim_mlp", "dim_att", "intermediate_size"),
    ("dim_mlp_dec", "dim_att_dec", "decoder_intermediate_size"),
)


def config_from_reference(config_json: Mapping, id2label: Mapping[int, str] | None = None) -> Pix2SeqConfig:
    r"""Convert the reference's configuration to ours.

    Args:
        config_json (`Mapping`):
            The parsed `config.json` of a reference model directory. Only its `model` section has to be there; `task`,
            `tasks`, `dataset`, `datasets` and `train` are read where they are.
        id2label (`Mapping[int, str]`, *optional*):
            Names of the raw label ids. By default those of the data set that `dataset` names (COCO), else numbers.
    Returns:
        [`Pix2SeqConfig`].
    Raises:
        ValueError: If this is the configuration of another model, or a value is missing or impossible.
    Source: `models/ar_model.py` and `configs/` of the reference implementation."""
    model = config_json.get("model") if isinstance(config_json, Mapping) else None
    if not isinstance(model, Mapping):
        raise ValueError("config.json has no 'model' section: this is not a configuration of the Pix2Seq reference")
    name = model.get("name", MODEL_NAME)
    if name != MODEL_NAME:
        raise ValueError(f"this is a checkpoint of another model: config.json names {name!r}, not {MODEL_NAME!r}")
    required = [key for key, _, default in MODEL_FIELDS if default is REQUIRED] + [key for key, _, _ in MLP_FIELDS]
    missing = [key for key in required if key not in model]
    if missing:
        raise ValueError(f"the 'model' section of config.json lacks {', '.join(missing)}")

    fields = {ours: model.get(key, default) for key, ours, default in MODEL_FIELDS}
    for key, width_key, ours in MLP_FIELDS:
        fields[ours] = model[key] // model[width_key] * model[width_key]
    fields |= _task_fields(config_json)
    train = config_json.get("train") or {}
    if "loss_type" in train:
        fields["loss_type"] = train["loss_type"]
    if id2label is None:
        if any(name.startswith("coco") for name in _dataset_names(config_json)):
            id2label = COCO_ID2LABEL
        else:  # every label that the vocabulary has room for can come out of the model, so each needs a name
            id2label = {label: f"label {label}" for label in range(1, fields["coord_vocab_shift"] - BASE_VOCAB_SHIFT)}
    return Pix2SeqConfig(id2label=dict(id2label), **fields)


def config_to_reference(config: Pix2SeqConfig) -> dict:
    r"""Convert our configuration to the sections of the reference's that [`config_from_reference`] reads.

    Args:
        config ([`Pix2SeqConfig`]): Of any network that the reference can build.
    Returns:
        `dict` with `model`, `task`, `tasks` and `train`; the labels are not in it."""
    model = {key: getattr(config, ours) for key, ours, _ in MODEL_FIELDS}
    model |= {key: getattr(config, ours) for key, _, ours in MLP_FIELDS}
    model |= {"name": MODEL_NAME, "image_size": list(config.image_size)}
    tasks = [_task_section(name, config) for name in config.tasks]
    return {"model": model, "task": tasks[0], "tasks": tasks, "train": {"loss_type": config.loss_type}}


def writes_text(config: Pix2SeqConfig) -> bool:
    """Whether a checkpoint has text tokens and so needs a tokenizer; that config.json names one does not tell."""
    return "captioning" in config.tasks or config.vocab_size > config.text_vocab_shift


def _task_section(name: str, config: Pix2SeqConfig) -> dict:
    section = {"name": name, "vocab_id": TASK_IDS[name], "image_size": list(config.image_size)}
    if name != "captioning":
        section["quantization_bins"] = config.quantization_bins
    if name == "object_detection":
        section["max_instances_per_image"] = config.max_instances_per_image
        section["max_instances_per_image_test"] = config.max_instances_per_image
    return section


def _task_fields(config_json: Mapping) -> dict:
    tasks = config_json.get("tasks") or [config_json.get("task")]
    tasks = [task for task in tasks if isinstance(task, Mapping) and task.get("name") in TASK_IDS]
    fields = {}
    if tasks:
        fields["tasks"] = list(dict.fromkeys(task["name"] for task in tasks))
    bins = {task["name"]: task["quantization_bins"] for task in tasks if "quantization_bins" in task}
    if len(set(bins.values())) > 1:
        raise ValueError(f"the tasks of config.json differ in quantization_bins: {bins}")
    if bins:
        fields["quantization_bins"] = next(iter(bins.values()))
    for task in tasks:
        if task["name"] == "object_detection":
            count = task.get("max_instances_per_image_test", task.get("max_instances_per_image"))
            if count is not None:
                fields["max_instances_per_image"] = count
    return fields


def _dataset_names(config_json: Mapping) -> list[str]:
    datasets = config_json.get("datasets") or [config_json.get("dataset")]
    return [str(dataset.get("name", "")) for dataset in datasets if isinstance(dataset, Mapping)]
