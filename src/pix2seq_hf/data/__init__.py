"""Data: sources of annotated pictures, transforms of one record, and the way to a batch."""
