"""Find the objects in pictures.

examples:
  pix2seq predict street.jpg --model vit-b --output found
  pix2seq predict holiday/ "archive/**/*.png" --model vit-b --output found --threshold 0.5 --batch-size 8
  pix2seq predict val2017/ --model vit-b --output found --threshold 0     (everything, for measuring)

In the output folder:
  NAME.png      every picture with its boxes, class names and scores
  results.json  the objects in COCO's results format: image_id, category_id, bbox (x, y, width, height), score
  images.json   which file each image_id is, and which name each category_id has, as a COCO file without annotations,
                so that pycocotools reads both: COCO("images.json").loadRes("results.json"); also the names of the
                drawings, and what was malformed in what the model wrote

An image_id is the number that a file is named after, as in COCO, if all are; else pictures are numbered from 1.
Both JSON files are complete after every batch, so nothing is lost when the command is interrupted. A file that is no
usable picture is left out and named at the end, and the exit code is then 1.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .data.pictures import MAX_PIXELS, PictureError, find_pictures, load_picture
from .visualization import draw_detections

SIGNATURE = "pix2seq_hf"  # in the "Software" entry of our PNG files: only those are ever written over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq predict`."""
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="a file, a folder, or a quoted pattern such as '*.jpg'"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, as convert and train write it")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the results go; made if it is missing")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="leave out objects of a lower score (default: 0.3)",
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at once (default: 4)")
    parser.add_argument(
        "--max-objects",
        type=int,
        metavar="N",
        help="objects to write per picture; fewer is faster (default: the model's)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for the model's sampling of tokens (default: 0)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger pictures (default: 100 million)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary; errors are still named")


def run(args: argparse.Namespace) -> int:
    """Do what the options say and return the exit code: 0, or 1 if a picture was left out."""
    check_options(args)
    paths, problems = find_pictures(args.pictures)
    model, processor = load_model(args.model, args.device)
    output = DetectionFolder(args.output, paths, model.config.id2label)
    try:
        predict(args, paths, model, processor, output, problems)
    finally:  # also when interrupted
        for problem in problems:
            print(f"pix2seq predict: left out: {problem}", file=sys.stderr)
    return 1 if problems else 0


def predict(
    args: argparse.Namespace,
    paths: list[Path],
    model: Any,
    processor: Any,
    output: "DetectionFolder",
    problems: list[str],
) -> None:
    """Go through the pictures in batches; what is wrong with a picture is appended to `problems` as one line."""
    import torch  # here and below only when needed: --help and wrong options should not wait for it
    from tqdm import tqdm

    torch.manual_seed(args.seed)
    start, objects = time.monotonic(), 0
    with tqdm(total=len(paths), unit="picture", disable=args.quiet, dynamic_ncols=True) as bar:
        try:
            for first in range(0, len(paths), args.batch_size):
                batch = []
                for path in paths[first : first + args.batch_size]:
                    try:
                        batch.append((path, load_picture(path, args.max_pixels)))
                    except PictureError as error:
                        problems.append(str(error))
                        bar.update()
                images = [image for _, image in batch]
                found = detect(model, processor, images, args.threshold, args.max_objects) if images else []
                for (path, image), detections in zip(batch, found):
                    output.write(path, image, detections)
                    objects += len(detections["labels"])
                    bar.set_postfix_str(f"{objects} objects", refresh=False)
                    bar.update()
        finally:
            bar.close()
            if not args.quiet:
                print(output.summary(objects, time.monotonic() - start))


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for a number that makes no sense, naming the option."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: a score lies between 0 and 1")
    for option in ("batch_size", "max_objects", "max_pixels"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1")


def choose_device(name: str):
    """The device of that name; "auto" is CUDA, else Apple's, else the CPU. Raises ValueError if it is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def load_model(folder: str, device: str = "auto"):
    r"""Load a model folder with its processor, complete and of the right kind.

    Args:
        folder (`str`): As `save_pretrained` of model and processor wrote it.
        device (`str`): See [`choose_device`].
    Returns:
        `tuple[Pix2SeqForConditionalGeneration, Pix2SeqProcessor]`: The model in evaluation mode on the device.
    Raises:
        ValueError: If the folder holds another model, or its weights are missing, cut off, or do not fit."""
    config = Path(folder, "config.json")
    if not config.is_file():
        advice = "`pix2seq convert` and `pix2seq train` write a folder with one"
        raise ValueError(f"{folder}: is no model folder, there is no config.json in it; {advice}")

    from safetensors import SafetensorError
    from transformers.utils import logging

    from .configuration_pix2seq import Pix2SeqConfig
    from .modeling_pix2seq import Pix2SeqForConditionalGeneration
    from .processing_pix2seq import Pix2SeqProcessor

    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: is not a model's configuration ({error})") from None
    if model_type != Pix2SeqConfig.model_type:
        raise ValueError(
            f"{folder}: is a checkpoint of another model, {model_type!r} instead of {Pix2SeqConfig.model_type!r}"
        )
    device = choose_device(device)
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = Pix2SeqForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{folder}: the weights are cut off or do not fit the configuration ({error})") from None
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing or do not fit, the first is {missing[0]}")
    return model.to(device).eval(), Pix2SeqProcessor.from_pretrained(folder)


def detect(
    model: Any, processor: Any, images: Sequence[Image.Image], threshold: float = 0.0, max_objects: int | None = None
) -> list[dict[str, Any]]:
    r"""Detect the objects in a batch of pictures.

    Args:
        model (`Pix2SeqForConditionalGeneration`): On any device.
        processor (`Pix2SeqProcessor`): That of the model.
        images (`Sequence[PIL.Image.Image]`): Upright RGB pictures of any sizes.
        threshold (`float`): Objects of a lower score are left out.
        max_objects (`int`, *optional*): Objects to write per picture, by default what the model was saved with.
    Returns:
        `list[dict]`, per picture: `scores` `(num_objects,)`, `labels` `(num_objects,)`, `boxes` `(num_objects, 4)` as
        `left, top, right, bottom` in pixels, cut to the picture, boxes without area left out; `malformed` the kinds of
        malformed slots in the generated sequence with their numbers."""
    inputs = processor(images=list(images), task="object_detection", return_tensors="pt").to(model.device)
    limit = {} if max_objects is None else {"max_new_tokens": 5 * max_objects}
    output = model.generate(**inputs, **limit)
    target_sizes = [(image.height, image.width) for image in images]
    results = processor.post_process_generation(
        output, task="object_detection", target_sizes=target_sizes, threshold=threshold
    )
    return [cut_to_picture(result, image.size) for result, image in zip(results, images)]


def cut_to_picture(detections: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Cut `boxes` to a picture of `size` (width, height) and leave out objects whose box then has no area."""
    width, height = size
    boxes_xyxy = detections["boxes"].clone()
    boxes_xyxy[:, 0::2] = boxes_xyxy[:, 0::2].clamp(0, width)
    boxes_xyxy[:, 1::2] = boxes_xyxy[:, 1::2].clamp(0, height)
    has_area = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) > 0).all(-1)
    return {
        "scores": detections["scores"][has_area],
        "labels": detections["labels"][has_area],
        "boxes": boxes_xyxy[has_area],
        "malformed": detections["malformed"],
    }


class JsonList:
    """A JSON file that ends in a list and is complete after every [`append`], however long the list gets."""

    def __init__(self, path: Path, head: str = "[", tail: str = "]\n"):
        """Start the file anew: `head` opens the list and `tail` closes it."""
        self.path, self.tail = path, tail
        self.is_empty = True
        self.end = len(head.encode())
        path.write_text(head + tail, encoding="utf-8")

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add entries, one per line."""
        text = ""
        for entry in entries:
            text += ("\n" if self.is_empty else ",\n") + json.dumps(entry)
            self.is_empty = False
        if text:
            with open(self.path, "r+b") as file:
                file.seek(self.end)
                file.write((text + "\n" + self.tail).encode())  # in one piece: over the old tail
            self.end += len(text.encode())


class DetectionFolder:
    r"""The output folder: one PNG per picture, `results.json` and `images.json`, written as results come.

    Args:
        folder (`str`): Made if it is missing.
        paths (`Sequence[Path]`): All pictures that may come; they decide about ids and are never written over.
        names (`Mapping[int, str]`): Name of each label id.
    Raises:
        OSError: If the folder cannot be made."""

    def __init__(self, folder: str, paths: Sequence[Path], names: Mapping[int, str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = names
        self.image_ids = number_pictures(paths)
        self.taken = {os.path.realpath(path) for path in paths}
        self.num_pictures = 0
        self.results = JsonList(self.folder / "results.json")
        categories = [{"id": int(label), "name": name} for label, name in sorted(names.items())]
        head = '{"info": {},\n"categories": ' + json.dumps(categories) + ',\n"images": ['
        self.images = JsonList(self.folder / "images.json", head, "]}\n")

    def write(self, path: Path, image: Image.Image, detections: Mapping[str, Any]) -> None:
        """Save one picture and its objects: the drawing, then the two lists."""
        from .task_object_detection import coco_results

        boxes_xyxy, labels, scores = (detections[key].cpu() for key in ("boxes", "labels", "scores"))
        target = self.free_name(path.stem)
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text("Software", SIGNATURE)
        drawing = draw_detections(image, boxes_xyxy, labels, scores, self.names)
        drawing.save(target, pnginfo=metadata, compress_level=4)  # half the time of the default, about the same size
        image_id = self.image_ids[path]
        self.results.append(coco_results(image_id, labels, scores, boxes_xyxy[:, [1, 0, 3, 2]]))
        entry = {"id": image_id, "file_name": path.as_posix(), "width": image.width, "height": image.height}
        self.images.append([{**entry, "drawing": target.name, "malformed": detections["malformed"]}])
        self.num_pictures += 1

    def free_name(self, stem: str) -> Path:
        """A PNG file for a picture of that name: not used in this run, and not somebody else's file."""
        number = 1
        while True:
            target = self.folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            key = os.path.realpath(target)
            if key not in self.taken and (not target.exists() or is_ours(target)):
                self.taken.add(key)
                return target
            number += 1

    def summary(self, num_objects: int, seconds: float) -> str:
        """What was done, in one line."""
        done = f"{self.num_pictures} picture{'s' * (self.num_pictures != 1)}"
        found = f"{num_objects} object{'s' * (num_objects != 1)}"
        pace = f", {seconds / self.num_pictures:.2f} s per picture" if self.num_pictures else ""
        return f"{done}, {found}{pace}: {self.folder} (PNG, results.json, images.json)"


def number_pictures(paths: Sequence[Path]) -> dict[Path, int]:
    """An id for each picture: the number it is named after if that is so for all and no two share one, else 1, 2, 3."""
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return {path: int(path.stem) for path in paths}
    return {path: number for number, path in enumerate(paths, start=1)}


def is_ours(path: Path) -> bool:
    """Whether a file is a PNG that this command wrote."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SIGNATURE
    except (OSError, ValueError, SyntaxError):
        return False
