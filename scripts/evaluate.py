"""Measure a model, on one process or many: `accelerate launch scripts/evaluate.py ...`; else `pix2seq evaluate`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
