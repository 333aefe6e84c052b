"""Where a model comes from: presets, folders, hub ids, released checkpoints -> configuration, tokenizer, weights.

Imports: contents, errors, files, sample, tasks.heads. Never: accelerate, deepspeed.
"""

from bigqa.models.sources import load_config, load_model, load_tokenizer, resolve

__all__ = ["load_config", "load_model", "load_tokenizer", "resolve"]
