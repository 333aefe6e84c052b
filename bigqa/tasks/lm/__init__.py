"""Language models: conversations, or prompts and completions; the loss is over the answers alone.

Imports: errors, ranges, tasks. Never: transformers, accelerate, deepspeed.
"""
