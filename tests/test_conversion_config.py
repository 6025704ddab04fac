"""The reference's config.json as our configuration, complete, old, minimal and wrong."""

import copy

import pytest

from pix2seq_hf.configuration_pix2seq import PRESETS, Pix2SeqConfig
from pix2seq_hf.conversion import config_from_reference, config_to_reference
from pix2seq_hf.conversion.coco_labels import COCO_ID2LABEL
from pix2seq_hf.conversion.config import writes_text

MINIMAL = {
    "model": {
        "image_size": [96, 64],
        "dim_att": 48,
        "dim_mlp": 192,
        "num_encoder_layers": 2,
        "num_heads": 4,
        "dim_att_dec": 32,
        "dim_mlp_dec": 96,
        "num_decoder_layers": 1,
        "num_heads_dec": 2,
        "vocab_size": 3000,
    }
}


def changed(section="model", **values):
    config_json = copy.deepcopy(MINIMAL)
    config_json.setdefault(section, {}).update(values)
    return config_json


def test_a_minimal_configuration_gets_the_references_defaults():
    config = config_from_reference(MINIMAL)
    assert tuple(config.image_size) == (96, 64)
    assert (config.hidden_size, config.intermediate_size, config.decoder_intermediate_size) == (48, 192, 96)
    assert (config.resnet_variant, config.patch_size, config.projection_mode) == ("c1", 16, "mlp")
    assert (config.position_encoding, config.text_position_encoding) == ("sin_cos", "learned")
    assert (config.use_class_token, config.use_output_bias, config.tie_word_embeddings) == (False, True, True)
    assert (config.max_position_embeddings, config.quantization_bins, config.tasks) == (512, 1000, ["object_detection"])


def test_every_option_arrives():
    config = config_from_reference(
        {
            **changed(
                name="encoder_ar_decoder",
                image_size=(640, 480),
                resnet_variant="c4",
                resnet_depth=101,
                resnet_width_multiplier=0.29,
                resnet_sk_ratio=0.0625,
                use_cls_token=True,
                shared_decoder_embedding=False,
                decoder_output_bias=False,
                dec_proj_mode="linear_p",
                pos_encoding="learned",
                pos_encoding_dec="sin_cos",
                drop_path=0.2,
                drop_units=0.3,
                drop_att=0.4,
                max_seq_len=600,
                vocab_size=35000,
                text_vocab_shift=3100,
                an_option_of_a_later_version=1,
            ),
            "tasks": [
                {"name": "object_detection", "quantization_bins": 2000, "max_instances_per_image": 100,
                 "max_instances_per_image_test": 70},
                {"name": "captioning"},
                {"name": "panoptic_segmentation", "quantization_bins": 7},
            ],
            "train": {"loss_type": "xent@0.1"},
        }
    )  # fmt: skip
    assert tuple(config.image_size) == (640, 480)
    assert (config.resnet_variant, config.resnet_depth, config.resnet_width_multiplier) == ("c4", 101, 0.29)
    assert (config.resnet_sk_ratio, config.projection_mode) == (0.0625, "linear_p")
    assert (config.position_encoding, config.text_position_encoding) == ("learned", "sin_cos")
    assert (config.use_class_token, config.use_output_bias, config.tie_word_embeddings) == (True, False, False)
    assert (config.drop_path_rate, config.drop_units_rate, config.drop_attention_rate) == (0.2, 0.3, 0.4)
    assert (config.vocab_size, config.text_vocab_shift, config.max_position_embeddings) == (35000, 3100, 600)
    assert (config.quantization_bins, config.max_instances_per_image) == (2000, 70)
    assert config.tasks == ["object_detection", "captioning"]
    assert config.loss_type == "xent@0.1"


def test_mlp_widths_are_whole_multiples_of_the_attentions():
    config = config_from_reference(changed(dim_mlp=100, dim_mlp_dec=70))  # the reference rounds 100 // 48 to 2
    assert (config.intermediate_size, config.decoder_intermediate_size) == (96, 64)


@pytest.mark.parametrize("name", ["fit_encoder_ar_decoder", "image_diffusion_model"])
def test_another_model_is_refused(name):
    with pytest.raises(ValueError, match=f"checkpoint of another model.*{name}"):
        config_from_reference(changed(name=name))


@pytest.mark.parametrize("config_json", [{}, {"model": 3}, [], {"architectures": ["Bert"]}])
def test_another_configuration_is_refused(config_json):
    with pytest.raises(ValueError, match="no 'model' section"):
        config_from_reference(config_json)


def test_missing_sizes_are_named():
    config_json = copy.deepcopy(MINIMAL)
    del config_json["model"]["dim_att"], config_json["model"]["vocab_size"]
    with pytest.raises(ValueError, match="lacks dim_att, vocab_size"):
        config_from_reference(config_json)


def test_tasks_that_disagree_about_bins_are_refused():
    tasks = [
        {"name": "object_detection", "quantization_bins": 1000},
        {"name": "keypoint_detection", "quantization_bins": 500},
    ]
    with pytest.raises(ValueError, match=r"quantization_bins.*1000.*500"):
        config_from_reference({**MINIMAL, "tasks": tasks})


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="resnet_variant 'c7'"):
        config_from_reference(changed(resnet_variant="c7"))
    with pytest.raises(ValueError, match="smaller than patch_size 128"):
        config_from_reference(changed(patch_size=128))
    with pytest.raises(ValueError, match="overlap"):
        config_from_reference(changed(text_vocab_shift=1500))


def test_labels_come_from_the_data_set():
    assert (
        config_from_reference({**MINIMAL, "dataset": {"name": "coco/2017_object_detection"}}).id2label == COCO_ID2LABEL
    )
    numbered = config_from_reference({**MINIMAL, "dataset": {"name": "obj365/v1"}}).id2label
    assert list(numbered) == list(range(1, 900)) and numbered[17] == "label 17"
    assert config_from_reference(MINIMAL, id2label={3: "cell"}).id2label == {3: "cell"}
    with pytest.raises(ValueError, match="900"):
        config_from_reference(MINIMAL, id2label={i: str(i) for i in range(1, 901)})


def test_coco_has_80_labels_with_gaps():
    assert len(COCO_ID2LABEL) == 80 and (min(COCO_ID2LABEL), max(COCO_ID2LABEL)) == (1, 90)
    assert (COCO_ID2LABEL[1], COCO_ID2LABEL[18], COCO_ID2LABEL[90]) == ("person", "dog", "toothbrush")
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(COCO_ID2LABEL)


def test_text_is_told_by_the_vocabulary_and_the_tasks():
    assert not writes_text(config_from_reference({**MINIMAL, "tokenizer": {"sentencepiece_model": "x"}}))
    assert not writes_text(config_from_reference(changed(vocab_size=2200)))
    assert writes_text(config_from_reference(changed(vocab_size=35000)))
    assert writes_text(config_from_reference({**MINIMAL, "task": {"name": "captioning"}}))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_configuration_survives_the_way_there_and_back(preset):
    config = Pix2SeqConfig.from_preset(
        preset, image_size=(640, 480), use_class_token=True, vocab_size=35000, quantization_bins=500,
        loss_type="focal@2", tasks=["captioning", "object_detection"], max_instances_per_image=50,
        id2label={1: "cell"},
    )  # fmt: skip
    assert config_from_reference(config_to_reference(config), id2label={1: "cell"}).to_dict() == config.to_dict()
