"""A CUDA device that is not there: torch's own memory management, on a machine without a GPU.

The libraries below torch's CUDA build are replaced by ones that give out addresses and run nothing. Knows cards and
builds of torch, and nothing of models and training. Imports: errors, files, units, machine. Never: torch.
"""
