"""A GPU's step without a GPU: fake tensors on a fake device, and a model of what a real one would take for it."""
