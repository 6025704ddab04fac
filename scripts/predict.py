"""Find the objects in pictures: `python scripts/predict.py street.jpg --model DIR --output DIR`, the same as `pix2seq predict`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
