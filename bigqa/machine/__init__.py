"""What is there: processor, memory, disks, cards; the datasheets of cards that are not; and the process's own heap.

Knows nothing of models and training. Imports: errors, files, units. Never: torch, transformers.
"""
