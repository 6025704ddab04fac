"""Pictures and annotations in, model inputs out."""
