"""The training loop and its arguments."""
