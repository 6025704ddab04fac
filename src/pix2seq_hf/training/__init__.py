"""Training: typed arguments, the reference's optimisation, and a plain Accelerate loop."""
