import pytest

from pix2seq_hf import Pix2SeqConfig, Pix2SeqForConditionalGeneration
from tiny_models import make_config


def test_saves_and_loads(tmp_path):
    config = make_config(loss_type="xent@0.1", tasks=["object_detection", "captioning"])
    config.save_pretrained(tmp_path)
    loaded = Pix2SeqConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.image_size == (48, 32) and loaded.id2label[90] == "toothbrush"


def test_decoder_view_uses_the_decoder_sizes():
    decoder = make_config().get_text_config(decoder=True)
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.num_attention_heads) == (24, 2, 3)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet", 36.6), ("resnet-c", 84.7), ("vit-b", 115.2), ("vit-l", 341.2)]
)
def test_presets_have_the_published_parameter_counts(name, millions):
    import torch

    with torch.device("meta"):
        model = Pix2SeqForConditionalGeneration(Pix2SeqConfig.from_preset(name))
    # The published figure counts trained weights at 3,000 words, shared embeddings once, no running statistics.
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 7}, r"\(7, 7\).*patch_size 8"),
        ({"id2label": {900: "a"}}, "900 does not fit.*899"),
        ({"coord_vocab_shift": 90}, "base_vocab_shift 100.*coord_vocab_shift 90"),
        ({"quantization_bins": 2500, "vocab_size": 35000}, "overlap.*text_vocab_shift 3000.*2500"),
        ({"quantization_bins": 1}, "at least 2"),
        ({"loss_type": "mse"}, "unknown loss_type 'mse'"),
        ({"loss_type": "focal@x"}, "focal@x"),
        ({"resnet_variant": "c6"}, "unknown resnet_variant 'c6'"),
        ({"resnet_variant": "dc5"}, "bottleneck.*18"),
        ({"resnet_variant": "standard", "resnet_depth": 19}, "unknown resnet_depth 19"),
        ({"projection_mode": "conv"}, "unknown projection_mode"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate 1.0 is outside"),
        ({"decoder_num_attention_heads": 25}, "decoder_num_attention_heads 25.*24"),
        ({"intermediate_size": 8}, "intermediate_size 8.*hidden_size 32"),
    ],
)
def test_impossible_combinations_name_both_numbers(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"'vit-x'.*vit-b, vit-l, resnet, resnet-c"):
        Pix2SeqConfig.from_preset("vit-x")


def test_keypoints_are_cocos_by_default_and_anyones_by_choice(tmp_path):
    config = make_config()
    assert config.num_keypoints == 17
    assert config.keypoint_pairs == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
    assert (15, 13) in config.keypoint_skeleton
    hand = make_config(keypoint_names=["wrist", "thumb", "left_tip", "right_tip"], keypoint_skeleton=[[0, 1]])
    hand.save_pretrained(tmp_path)
    loaded = Pix2SeqConfig.from_pretrained(tmp_path)
    assert loaded.num_keypoints == 4 and loaded.keypoint_pairs == [(2, 3)] and loaded.keypoint_skeleton == [(0, 1)]
    with pytest.raises(ValueError, match=r"\(0, 4\), but keypoints count from 0 to 3"):
        make_config(keypoint_names=["a", "b", "c", "d"], keypoint_skeleton=[(0, 4)])
