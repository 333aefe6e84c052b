"""bigqa: a memory-constrained training engine for large models."""

__version__ = "0.2.0"
