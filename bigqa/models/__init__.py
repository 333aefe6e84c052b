"""Where a model comes from: presets, folders, hub ids, released checkpoints -> configuration, tokenizer, weights.

Imports: errors, files, sample. Never: accelerate, deepspeed.
"""
