"""Predict a whole data set: `accelerate launch scripts/predict.py --data DIR --model DIR --output OUT`, any number of
processes; on one, the same as `pix2seq predict-dataset`. For single pictures and videos: `pix2seq predict`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict-dataset", *sys.argv[1:]]))
