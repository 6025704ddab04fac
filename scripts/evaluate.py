"""Measure a model: `python scripts/evaluate.py --model DIR --coco DIR`, as `pix2seq evaluate`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
