"""Extractive question answering: questions on contexts in, spans of them out.

Imports: errors, files, ranges, tasks. Never: transformers, accelerate, deepspeed.
"""
