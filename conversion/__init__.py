"""Checkpoints of the reference implementation, converted both ways."""
