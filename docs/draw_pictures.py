"""The pictures of the documentation, drawn by the package itself: `python docs/draw_pictures.py [FOLDER]`.

Everything on them is computed: the scene, its tokens, what the tokens say, which tokens a grammar allows."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pix2seq_hf import TASKS, Pix2SeqConfig, Pix2SeqVocabulary
from pix2seq_hf.configuration_pix2seq import COCO_SKELETON
from pix2seq_hf.data.annotations import boxes_from_xywh, keypoints_from_triples, polygons_from_parts
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import Scene, SceneOptions, draw_scene
from pix2seq_hf.masks_pix2seq import rasterize, split_parts
from pix2seq_hf.task_object_detection import object_tokens
from pix2seq_hf.visualization import class_color, draw_detections

FOLDER = Path(__file__).parent / "pictures"
SCENE = (0, "tour", 4)  # seed, split, number
SIZE = (480, 640)  # height and width
NUM_SHOWN = 18  # points of the outline whose tokens are shown
WIDTH = 1280
PAPER, INK, PALE, LINE = (255, 255, 255), (24, 24, 27), (99, 99, 110), (212, 212, 216)
COLORS = {"reserved": (212, 212, 216), "class": (253, 186, 116), "coordinate": (147, 197, 253), "text": (134, 239, 172)}
TYPE = 21


def main(folder: Path = FOLDER) -> list[Path]:
    """Draw all pictures into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = draw_scene(*SCENE, SceneOptions(SIZE, (2, 4), (120, 340), 0, 56, True))
    pictures = {
        "vocabulary": draw_vocabulary(),
        "detection": draw_detection(scene),
        "outline": draw_outline(scene),
        "keypoints": draw_keypoints(scene),
        "grammar": draw_grammar(),
        "training": draw_training(scene),
    }
    for name, picture in pictures.items():
        # few colours: half the bytes, no difference to be seen
        picture.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
    return [folder / f"{name}.png" for name in pictures]


def kind_of(token: int, vocabulary: Pix2SeqVocabulary) -> str:
    """`"reserved"`, `"class"`, `"coordinate"` or `"text"`."""
    if token <= vocabulary.base_vocab_shift:
        return "reserved"
    if token < vocabulary.coord_vocab_shift:
        return "class"
    return "coordinate" if token < vocabulary.end_of_coordinates else "text"


def sheet(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet of paper and what draws on it."""
    paper = Image.new("RGB", (WIDTH, height), PAPER)
    return paper, ImageDraw.Draw(paper)


def write(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, color=INK, size: float = TYPE, anchor: str = "lm"
) -> None:
    """Write a text, its middle at height `y`."""
    draw.text((x, y), text, color, ImageFont.load_default(size), anchor)


def cell(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, color, width: float = 64, size: float = 18) -> None:
    """A token: a box with rounded corners around a text."""
    draw.rounded_rectangle((x, y, x + width - 4, y + 34), 6, fill=color)
    write(draw, x + (width - 4) / 2, y + 17, text, INK, size, "mm")


def row_of_tokens(
    draw: ImageDraw.ImageDraw, x: float, y: float, tokens: Iterable[int], vocabulary: Pix2SeqVocabulary
) -> float:
    """Tokens from left to right; returns where the next one would stand."""
    for token in tokens:
        cell(draw, x, y, str(token), COLORS[kind_of(token, vocabulary)])
        x += 64
    return x


def draw_vocabulary() -> Image.Image:
    """The vocabularies of a detector and of a model that writes captions, as bars."""
    layouts = {
        "A detector: 3,000 tokens": Pix2SeqVocabulary(),
        "All tasks: 35,000 tokens": Pix2SeqVocabulary(vocab_size=35000),
        "500 bins, room for 49 classes, no text": Pix2SeqVocabulary(
            vocab_size=650, quantization_bins=500, coord_vocab_shift=150, text_vocab_shift=650
        ),
    }
    paper, draw = sheet(150 * len(layouts) + 20)
    for number, (title, layout) in enumerate(layouts.items()):
        y = 24 + 150 * number
        write(draw, 20, y, title)
        ends = [
            ("reserved", 0, layout.base_vocab_shift),
            ("class", layout.base_vocab_shift, layout.coord_vocab_shift),
            ("coordinate", layout.coord_vocab_shift, layout.end_of_coordinates),
            (None, layout.end_of_coordinates, layout.text_vocab_shift),
            ("text", layout.text_vocab_shift, layout.vocab_size),
        ]
        ends = [(kind, start, end) for kind, start, end in ends if end > start]
        widths = np.array([max(end - start, 1) ** 0.35 for _, start, end in ends])
        places = 20 + np.concatenate([[0], np.cumsum(widths / widths.sum() * (WIDTH - 90))])
        for (kind, start, _), left, right in zip(ends, places, places[1:]):
            color = COLORS[kind] if kind else PAPER
            draw.rectangle((left, y + 22, right, y + 66), fill=color, outline=LINE, width=2)
            write(draw, (left + right) / 2, y + 44, kind or "unused", INK if kind else PALE, 18, "mm")
            write(draw, left, y + 84, str(start), PALE, 18)
        write(draw, places[-1], y + 84, str(ends[-1][2]), PALE, 18)
    return paper


def tokens_of_boxes(scene: Scene, vocabulary: Pix2SeqVocabulary) -> torch.Tensor:
    """The five tokens `(num_objects, 5)` of every object of a scene."""
    boxes_yxyx = boxes_from_xywh([item["bbox"] for item in scene.objects], SIZE)
    labels = torch.tensor([item["category_id"] for item in scene.objects])
    return object_tokens(boxes_yxyx, labels, vocabulary)


def boxes_in_pixels(boxes_yxyx: torch.Tensor) -> np.ndarray:
    """Normalised boxes as `left, top, right, bottom` in pixels."""
    return boxes_yxyx.numpy()[:, [1, 0, 3, 2]] * np.tile([SIZE[1], SIZE[0]], 2)


def draw_detection(scene: Scene) -> Image.Image:
    """Picture, tokens, and the objects that are read from these tokens."""
    vocabulary = Pix2SeqVocabulary(id2label=SCENE_CLASSES)
    tokens = tokens_of_boxes(scene, vocabulary)
    paper, draw = sheet(SIZE[0] + 92 + 46 * len(tokens))
    paper.paste(scene.picture, (0, 0))
    found = TASKS["object_detection"].parse(tokens.reshape(1, -1), None, vocabulary)
    boxes = boxes_in_pixels(found.boxes_yxyx[0])
    drawing = draw_detections(scene.picture, boxes, found.labels[0], None, SCENE_CLASSES)
    paper.paste(drawing, (WIDTH - drawing.width, 0))
    draw.line((WIDTH // 2, 0, WIDTH // 2, SIZE[0]), fill=PAPER, width=6)
    y = SIZE[0] + 30
    write(draw, 20, y, "the picture, the prompt,")
    cell(draw, 258, y - 17, str(TASKS["object_detection"].prompt_id), COLORS["reserved"])
    write(draw, 330, y, "and what the model writes, left to right and line by line; on the right, the same read again")
    for x, name in zip((84, 148, 212, 276, 340), ("ymin", "xmin", "ymax", "xmax", "class")):
        write(draw, x + 30, y + 40, name, PALE, 17, "mm")
    for number, row in enumerate(tokens.tolist()):
        top = y + 58 + 46 * number
        label = row[4] - vocabulary.base_vocab_shift
        draw.rounded_rectangle((24, top + 4, 64, top + 30), 6, fill=class_color(label))
        end = row_of_tokens(draw, 84, top, row, vocabulary)
        left, upper, right, lower = boxes[number]
        text = f"{SCENE_CLASSES[label]}, from ({left:.1f}, {upper:.1f}) to ({right:.1f}, {lower:.1f}) in pixels"
        write(draw, end + 20, top + 17, text)
    return paper


def thing_of(scene: Scene, name: str) -> dict:
    """The largest object of a class."""
    return max((item for item in scene.objects if SCENE_CLASSES[item["category_id"]] == name), key=lambda x: x["area"])


def draw_outline(scene: Scene) -> Image.Image:
    """The outline of an object as tokens, and the mask that they enclose."""
    vocabulary = Pix2SeqVocabulary(id2label=SCENE_CLASSES)
    item = thing_of(scene, "umbrella")
    points_yx = polygons_from_parts([item["segmentation"]], SIZE, 56)[0]
    tokens = vocabulary.encode_points(points_yx)
    tokens = tokens[tokens != vocabulary.padding_token]
    read = TASKS["instance_segmentation"].parse(tokens[None], None, vocabulary).points_yx[0].numpy()
    parts_xy = [(part.reshape(-1, 2) * [SIZE[1], SIZE[0]]).reshape(-1) for part in split_parts(read)]
    box = boxes_in_pixels(boxes_from_xywh([item["bbox"]], SIZE))
    mask = rasterize([parts_xy], SIZE).full()
    label = item["category_id"]
    paper, draw = sheet(SIZE[0] + 230)
    dotted = scene.picture.copy()
    dots = ImageDraw.Draw(dotted)
    for part in parts_xy:
        for x, y in part.reshape(-1, 2):
            dots.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255), outline=INK, width=1)
    paper.paste(dotted, (0, 0))
    paper.paste(draw_detections(scene.picture, box, [label], None, SCENE_CLASSES, [mask]), (WIDTH - SIZE[1], 0))
    draw.line((WIDTH // 2, 0, WIDTH // 2, SIZE[0]), fill=PAPER, width=6)
    prompt = TASKS["instance_segmentation"].prompt(
        vocabulary, boxes_from_xywh([item["bbox"]], SIZE), torch.tensor([label])
    )[0]
    y = SIZE[0] + 30
    write(draw, 20, y, "asked about one object: task, box, class")
    row_of_tokens(draw, 440, y - 17, prompt.tolist(), vocabulary)
    write(draw, 20, y + 50, f"the first {NUM_SHOWN} of the {len(tokens) // 2} points that the model writes, y before x")
    for number, row in enumerate(tokens[: 2 * NUM_SHOWN].reshape(2, NUM_SHOWN).tolist()):
        row_of_tokens(draw, 20, y + 74 + 42 * number, row, vocabulary)
    end = "0 ends it, 40 in place of a point begins another part; the mask on the right is filled from the points"
    write(draw, 20, y + 178, end, PALE)
    return paper


def draw_keypoints(scene: Scene) -> Image.Image:
    """The keypoints of a person as tokens."""
    vocabulary = Pix2SeqVocabulary(id2label=SCENE_CLASSES)
    item = next(item for item in scene.objects if item.get("num_keypoints"))
    points_yx = keypoints_from_triples([item["keypoints"]], SIZE, 17)
    tokens = vocabulary.encode_points(points_yx)[0]
    read = TASKS["keypoint_detection"].parse(tokens[None], torch.ones(1, len(tokens)), vocabulary)
    places = read.points_yx[0].reshape(-1, 2).numpy()[:, ::-1] * [SIZE[1], SIZE[0]]
    rows = [(x, y, float(seen)) for (x, y), seen in zip(places, read.is_visible[0])]
    label = [item["category_id"]]
    box = boxes_in_pixels(boxes_from_xywh([item["bbox"]], SIZE))
    drawing = draw_detections(scene.picture, box, label, None, SCENE_CLASSES, None, [rows], COCO_SKELETON)
    paper, draw = sheet(SIZE[0] + 14)
    paper.paste(drawing, (0, 7))
    names = Pix2SeqConfig().keypoint_names
    for number, (name, y, x) in enumerate(zip(names, tokens[::2].tolist(), tokens[1::2].tolist())):
        top = 6 + 28 * number
        write(draw, SIZE[1] + 30, top + 14, name.replace("_", " "), size=19)
        color = COLORS[kind_of(y, vocabulary)]
        for place, token in enumerate((y, x)):
            left = SIZE[1] + 210 + 70 * place
            draw.rounded_rectangle((left, top + 1, left + 64, top + 26), 5, fill=color)
            write(draw, left + 32, top + 13.5, str(token), INK, 17, "mm")
    return paper.crop((0, 0, SIZE[1] + 380, paper.height))


GROUPS = ("padding", "fake class", "separator", "invisible", "class", "coordinate", "text", "end")


def draw_grammar() -> Image.Image:
    """Which kinds of tokens each task may write at which place, asked from the grammars themselves."""
    config = Pix2SeqConfig(vocab_size=35000)
    first, end = config.coord_vocab_shift, config.text_vocab_shift + 1
    samples = dict(zip(GROUPS, (0, 30, 40, 41, config.base_vocab_shift + 1, first, config.text_vocab_shift + 7, end)))
    colors = {"class": COLORS["class"], "coordinate": COLORS["coordinate"], "text": COLORS["text"]}
    # What was written before each place: enough of it to show where rules change.
    written = {
        "object_detection": [[first] * 4, ["y", "x", "y", "x", "class"]],
        "instance_segmentation": [[first] * 7, ["y", "x", "y", "x", "y", "x", "y or sign", "x or sign"]],
        "keypoint_detection": [[first] * 3, ["y", "x", "y", "x"]],
        "captioning": [[samples["text"]] * 2, ["word", "word", "word"]],
    }
    paper, draw = sheet(48 + sum(64 + 34 * len(names) for _, names in written.values()))
    for column, name in enumerate(GROUPS):
        write(draw, 395 + 118 * column, 24, name, PALE, 19, "mm")
    y = 48
    for task, (tokens, places) in written.items():
        grammar = TASKS[task].grammar(config)
        write(draw, 20, y + 24, task.replace("_", " "))
        y += 48
        for step, place in enumerate(places):
            before = torch.tensor([tokens[:step]], dtype=torch.long).reshape(1, step)
            logits = grammar.restrict(step, before, torch.zeros(1, config.vocab_size))[0]
            write(draw, 120, y + 17, f"{step + 1}.", PALE, 19, "rm")
            write(draw, 140, y + 17, place, INK, 19)
            for column, (name, token) in enumerate(samples.items()):
                left = 340 + 118 * column
                is_allowed = bool(logits[token] == 0)
                color = colors.get(name, COLORS["reserved"]) if is_allowed else (246, 246, 248)
                draw.rounded_rectangle((left, y + 2, left + 110, y + 31), 5, fill=color)
            y += 34
        y += 16
    return paper


def draw_training(scene: Scene) -> Image.Image:
    """What the decoder reads, what it shall write, and what each token weighs, of a picture with one object."""
    vocabulary = Pix2SeqVocabulary(id2label=SCENE_CLASSES)
    item = thing_of(scene, "umbrella")
    noise = torch.tensor([[0.62, 0.11, 0.9, 0.42]])  # a box where nothing is
    record = {
        "image_id": 1,
        "boxes_yxyx": torch.cat([boxes_from_xywh([item["bbox"]], SIZE), noise]),
        "labels": torch.tensor([item["category_id"], vocabulary.fake_class_label]),
    }
    targets = TASKS["object_detection"].targets(
        record, vocabulary, np.random.default_rng(1), max_instances_per_image=3, max_seq_len=15
    )
    paper, draw = sheet(210)
    rows = (("reads", targets.decoder_input_ids), ("writes", targets.labels), ("weight", targets.label_weights))
    for number, (name, values) in enumerate(rows):
        y = 56 + 50 * number
        write(draw, 20, y + 17, name)
        for place, value in enumerate(values.tolist()):
            x = 130 + 76 * place
            if name == "weight":
                write(draw, x + 36, y + 17, f"{value:g}", PALE if value < 1 else INK, 20, "mm")
            else:
                cell(draw, x, y, str(value), COLORS[kind_of(value, vocabulary)], 76, 19)
    spans: Sequence[tuple[int, int, str]] = ((0, 5, "the umbrella"), (5, 10, "a noise box"), (10, 15, "padding"))
    for start, stop, text in spans:
        left, right = 130 + 76 * start, 130 + 76 * stop - 8
        draw.line((left, 42, right, 42), fill=PALE, width=2)
        write(draw, (left + right) / 2, 22, text, PALE, 19, "mm")
    return paper


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
