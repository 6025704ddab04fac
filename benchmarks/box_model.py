r"""How good is a model on drawn scenes that it has not seen: boxes, masks, keypoints, and what its captions say.

    python benchmarks/box_model.py                                             (1,000 scenes; minutes on a GPU)
    python benchmarks/box_model.py --model runs/box_model/final --count 50 --output found
    python benchmarks/box_model.py --speed                                     (how fast scenes are drawn)

AP is that of `pix2seq evaluate --data scenes:seed=1 --tasks all`. A caption's facts are classes, colours, numbers and
places; a fact is right if it is true of the scene (`pix2seq_hf.data.scene_captions`).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from pix2seq_hf import DEFAULT_MODEL, cli
from pix2seq_hf.data.scene_captions import count_facts
from pix2seq_hf.data.scene_source import parse_name
from pix2seq_hf.data.scenes import draw_scene

SPLIT = "test"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="DIR", help="a model folder (default: the model in the box)"
    )
    what.add_argument("--speed", action="store_true", help="draw only")
    parser.add_argument(
        "--data", default="scenes:seed=1", metavar="SCENES", help="which scenes (default: scenes:seed=1)"
    )
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--output", metavar="DIR", help="keep the results")
    args = parser.parse_args(arguments)
    seed, options = parse_name(args.data)
    if args.speed:
        start, num_objects = time.perf_counter(), 0
        for index in range(args.count):
            num_objects += len(draw_scene(seed, SPLIT, index, options).objects)
        seconds = time.perf_counter() - start
        print(
            f"{args.count / seconds:.0f} scenes a second, {num_objects / args.count:.1f} objects in each, one process"
        )
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(args.output or temporary)
        options_of_data = ["--data", args.data, "--split", SPLIT, "--max-images", str(args.count)]
        options_of_run = ["--model", args.model, "--tasks", "all", "--output", str(output)]
        options_of_run += ["--json", str(output / "numbers.json")]
        code = cli.main(["evaluate", *options_of_data, *options_of_run])
        if code or not (output / "captioning.json").is_file():
            return code
        found = json.loads((output / "captioning.json").read_text(encoding="utf-8"))
    captions = [item["caption"] for item in found]
    scenes = [draw_scene(seed, SPLIT, item["image_id"] - 1, options).objects for item in found]
    counts = count_facts(captions, scenes)
    if args.output:
        (output / "facts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    for kind, (right, total) in counts.items():
        print(f"facts, {kind:<9} {right:>6,} of {total:>6,} right" + (f", {right / total:.1%}" if total else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
