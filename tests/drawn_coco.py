"""A COCO folder of drawn pictures with boxes, outlines, a crowd region, keypoints and captions."""

import json

import numpy as np

from pix2seq_hf.data.shapes import draw_shapes

ALL_TASKS = ["object_detection", "instance_segmentation", "keypoint_detection", "captioning"]
CATEGORIES = [{"id": 2, "name": "disc"}, {"id": 3, "name": "star"}, {"id": 7, "name": "cross"}]  # ids with gaps


def write_drawn_coco(folder, split="train", num_images=4, seed=0):
    """Write `annotations/` and the pictures of a split; the last picture has no object. Returns the folder."""
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    images, objects, points, captions = [], [], [], []
    for image_id in range(11, 11 + num_images):
        height, width = (int(size) for size in rng.integers(60, 140, 2))
        picture, shapes = draw_shapes(rng, (height, width))
        picture.save(folder / split / f"{image_id:03}.png")
        images.append({"id": image_id, "file_name": f"{image_id:03}.png", "width": width, "height": height})
        captions += [{"id": len(captions) + place, "image_id": image_id, "caption": text} for place, text in
                     enumerate((f"Picture  {image_id}. ", "图片"))]  # fmt: skip
        for place, shape in enumerate(shapes if image_id < 10 + num_images else []):
            x, y, w, h = shape.box_xywh
            box = [x + 0.37, y + 0.11, w - 0.5, h - 0.25]  # as fine as people write them
            item = {
                "id": 100 + len(objects), "image_id": image_id, "category_id": (2, 3, 7)[shape.label % 3], "bbox": box,
                "area": shape.area - 0.3, "iscrowd": int(place == 1),
            }  # fmt: skip
            if item["iscrowd"]:
                item["segmentation"] = {"size": [height, width], "counts": [5, 20, height * width - 25]}
            else:
                item["segmentation"] = [[x + 0.25, y, x + w, y + 0.5, x + w / 2, y + h / 3], [x, y, x, y + 4, x + 3, y]]
            objects.append(item)
            if item["category_id"] == 2:
                triples = [x + 1, y + 2, 2, 0, 0, 0]
                points.append({**item, "keypoints": triples, "num_keypoints": 1})
    contents = {
        "instances": {"images": images, "annotations": objects, "categories": CATEGORIES},
        "person_keypoints": {"images": images, "annotations": points, "categories": CATEGORIES[:1]},
        "captions": {"images": images, "annotations": captions},
    }
    for kind, content in contents.items():
        (folder / f"annotations/{kind}_{split}.json").write_text(json.dumps(content))
    return folder
