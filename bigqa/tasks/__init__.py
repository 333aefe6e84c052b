"""What is learned, from files to losses and scores: reading, windows, features, answers, official scoring, download.

Knows models by their tokenizer and their output alone, and nothing of how they are trained.
Imports: errors, contents, files, console, ranges. Never: transformers, accelerate, deepspeed.
"""
