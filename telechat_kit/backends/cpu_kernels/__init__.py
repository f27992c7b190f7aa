"""The compiled part of the CPU backend: `kernels.c`, built on demand, and tensors in the form that it reads.

It is optional. Without a C compiler, or with TELECHAT_KIT_NO_KERNEL=1, the backend computes with torch.
"""
