"""Measuring: steps, kernels' levers, data and fine-tuning, beside peers; `bench` prints it."""
