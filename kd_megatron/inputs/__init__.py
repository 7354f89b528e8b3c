"""Inputs that are not part of the repository: what they are, whether they are here, and how to get them."""
