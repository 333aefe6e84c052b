"""A CUDA device that is not there: torch's own memory management, on a machine without a GPU."""
