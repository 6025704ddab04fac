"""Which checkpoints were released: their names, sizes and published figures."""

import difflib
from typing import NamedTuple

BASE_URL = "https://storage.googleapis.com/pix2seq"
TOKENIZER_OBJECT = "multi_task/data/c4_en_32k_spm.model"


class ReleasedCheckpoint(NamedTuple):
    """A released checkpoint.

    Args:
        name (`str`): The folder's path in the bucket, which is also the name on the command line.
        architecture (`str`): A preset of [`Pix2SeqConfig`].
        image_size (`int`): Height and width of the input in pixels.
        purpose (`str`): What it was trained for.
        coco_ap (`float`, *optional*): Published box AP on COCO val2017.
        num_parameters (`float`): Published number of parameters in millions.
        needs_tokenizer (`bool`): Whether it writes captions.
    """

    name: str
    architecture: str
    image_size: int
    purpose: str
    coco_ap: float | None
    num_parameters: float
    needs_tokenizer: bool = False


_ARCHITECTURES = (  # preset, name in the bucket, parameters in millions, COCO AP at 640, 1024 and 1333
    ("resnet", "resnet", 36.6, (39.1, 41.7, 42.6)),
    ("resnet-c", "resnetc", 84.7, (44.7, 46.9, 47.3)),
    ("vit-b", "vit_b", 115.2, (44.2, 46.5, 47.1)),
    ("vit-l", "vit_l", 341.2, (47.6, 49.2, 50.0)),
)
# Source: the tables of the reference implementation's README.
RELEASED = {
    checkpoint.name: checkpoint
    for checkpoint in (
        *(
            ReleasedCheckpoint(
                f"obj365_pretrain/{stem}_640x640_b256_s400k", preset, 640, "Objects365 pretraining", None, parameters
            )
            for preset, stem, parameters, _ in _ARCHITECTURES
        ),
        *(
            ReleasedCheckpoint(
                f"coco_det_finetune/{stem}_{size}x{size}", preset, size, "COCO detection", coco_ap, parameters
            )
            for preset, stem, parameters, figures in _ARCHITECTURES
            for size, coco_ap in zip((640, 1024, 1333), figures, strict=True)
        ),
        ReleasedCheckpoint("multi_task/ckpt/vit_b_640x640", "vit-b", 640, "four tasks", 44.2, 115.2, True),
        ReleasedCheckpoint("multi_task/ckpt/vit_b_1024x1024", "vit-b", 1024, "four tasks", 46.5, 115.2, True),
    )
}


def find_released(name: str) -> ReleasedCheckpoint | None:
    """Return the released checkpoint of this name, or `None`; `gs://pix2seq/` may stand in front."""
    return RELEASED.get(name.removeprefix("gs://pix2seq/").strip("/"))


def suggest_released(name: str) -> list[str]:
    """Return up to three released names that look like `name`, nearest first; a name's last part is enough."""
    name = name.lower().removeprefix("gs://pix2seq/").strip("/").replace("-", "_")
    by_last_part = [known for known in RELEASED if known.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]]
    last_parts = {known.rsplit("/", 1)[-1]: known for known in RELEASED}
    near = [
        *difflib.get_close_matches(name, RELEASED, n=3, cutoff=0.6),
        *(last_parts[part] for part in difflib.get_close_matches(name, last_parts, n=3, cutoff=0.6)),
    ]
    return list(dict.fromkeys(by_last_part + near))[:3]


def format_table() -> str:
    """Return the table that `pix2seq convert --list` prints."""
    width = max(map(len, RELEASED))
    lines = [f"{'name':{width}}  {'trained for':22}  {'size':>9}  {'COCO AP':>7}  {'parameters':>10}"]
    for checkpoint in RELEASED.values():
        size = f"{checkpoint.image_size}x{checkpoint.image_size}"
        coco_ap = "-" if checkpoint.coco_ap is None else f"{checkpoint.coco_ap:.1f}"
        lines.append(
            f"{checkpoint.name:{width}}  {checkpoint.purpose:22}  {size:>9}  {coco_ap:>7}  "
            f"{checkpoint.num_parameters:>8.1f} M"
        )
    return "\n".join(lines)
