"""Find the objects in pictures: `scripts/predict.py street.jpg --model DIR --output OUT`; see `pix2seq predict`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
