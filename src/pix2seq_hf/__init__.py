"""Pix2Seq for Hugging Face: vision as language."""

__version__ = "0.1.0"
