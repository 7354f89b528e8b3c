"""kd_megatron: pretrain or distil a small encoder under a fixed compute budget, and find out which is better."""

__version__ = "0.1.0"
