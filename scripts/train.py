"""Train, on one process or many: `accelerate launch scripts/train.py ...`; on one, the same as `pix2seq train`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
