"""Benchmarks of the kernels: correctness first, then time and peak memory of every backend, in turn.

Needs torch and triton alone, so that it runs on a bare GPU machine (`benchmarks/gpu_check.sh`).
"""
