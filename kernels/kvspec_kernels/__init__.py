"""Triton kernels of kvspec."""
