"""Evaluation: predictions in, numbers out."""
