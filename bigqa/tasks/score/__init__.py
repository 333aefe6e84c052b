"""Scores: a text or a pair in, a number out, as of how alike two sentences are.

Imports: errors, files, ranges, tasks. Never: transformers, accelerate, deepspeed.
"""
