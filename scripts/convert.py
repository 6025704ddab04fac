"""Convert a released checkpoint: `python scripts/convert.py --checkpoint NAME --output DIR`, as `pix2seq convert`."""

import sys

from pix2seq_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
