"""Captions of drawn scenes: what they say can be read out of them, and is true of the scene."""

import pytest

from pix2seq_hf.data.scene_captions import KINDS, MANY, Fact, Phrase, count_facts, facts, is_true
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import SceneOptions, draw_scene

LABELS = {name: label for label, name in SCENE_CLASSES.items()}


def thing(name, color, x, y, side=20, iscrowd=0):
    return {
        "category_id": LABELS[name],
        "color": color,
        "bbox": [x, y, side, side],
        "area": side**2,
        "iscrowd": iscrowd,
    }


SCENE = [
    thing("car", "red", 10, 100), thing("car", "blue", 60, 100), thing("car", "red", 110, 100),
    thing("person", "green", 200, 90), thing("balloon", "red", 200, 10), thing("person", "gray", 0, 0, 90, iscrowd=1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red car.", [Fact("class", Phrase("car", None, "red")), Fact("color", Phrase("car", None, "red"))]),
        ("Two cats", [Fact("class", Phrase("cat", 2)), Fact("count", Phrase("cat", 2))]),
        ("people and a tree", [Fact("class", Phrase("person")), Fact("class", Phrase("tree"))]),
        ("there are many fish", [Fact("class", Phrase("fish", MANY)), Fact("count", Phrase("fish", MANY))]),
        ("a crowd of people", [Fact("crowd", Phrase("person", is_crowd=True))]),
        ("Grey skies and nothing else", []),
        ("", []),
        ("carpets, donuthole, cats", [Fact("class", Phrase("cat"))]),
    ],
)
def test_what_a_caption_says(caption, expected):
    assert facts(caption) == expected


def test_relations_are_between_neighbouring_phrases():
    said = facts("A person in blue to the left of an orange cat.")
    first, second = Phrase("person", None, "blue"), Phrase("cat", None, "orange")
    assert Fact("relation", first, "to the left of", second) in said
    assert [fact.kind for fact in said] == ["class", "color", "class", "color", "relation"]
    assert [fact.kind for fact in facts("a cat next to a dog below a car")] == ["class", "class"]


@pytest.mark.parametrize(
    ("caption", "right", "total"),
    [
        ("A red car.", 2, 2),
        ("A green car.", 1, 2),
        ("Three cars.", 2, 2),
        ("Two cars.", 1, 2),
        ("Two red cars and a blue car.", 5, 5),
        ("Many cars.", 1, 2),
        ("A person in green to the right of a blue car.", 5, 5),
        ("A person in green to the left of a blue car.", 4, 5),
        ("A red balloon above a person.", 4, 4),
        ("A person above a red balloon.", 3, 4),
        ("A crowd of people.", 1, 1),
        ("A crowd of balloons.", 0, 1),
        ("One person.", 1, 1),
        ("Two people.", 1, 2),  # those of the crowd do not count
        ("A house.", 0, 1),
        ("Nothing of interest.", 0, 1),
    ],
)
def test_how_much_of_it_is_true(caption, right, total):
    assert count_facts([caption], [SCENE])["all"] == (right, total)


def test_drawn_captions_are_true():
    kinds = dict.fromkeys(KINDS, 0)
    for index in range(120):
        scene = draw_scene(2, "x", index, SceneOptions(image_size=(160, 160), crowd_rate=0.3))
        for caption in scene.captions:
            said = facts(caption)
            assert said, caption
            assert caption[0].isupper() and caption[-1] == "." and " a o" not in caption
            for fact in said:
                assert is_true(fact, scene.objects), caption
                kinds[fact.kind] += 1
    assert all(kinds.values()), kinds


def test_captions_of_other_scenes_are_not():
    scenes = [draw_scene(3, "x", index, SceneOptions(image_size=(160, 160))) for index in range(40)]
    captions = [scene.captions[2] for scene in scenes]
    right, total = count_facts(captions, [scene.objects for scene in scenes])["all"]
    assert right == total
    right, total = count_facts(captions[1:] + captions[:1], [scene.objects for scene in scenes])["all"]
    assert right < 0.6 * total
