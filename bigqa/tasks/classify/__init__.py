"""Classification: a text or a pair in; one label of many, yes or no, or several labels at once out.

Imports: errors, files, ranges, tasks. Never: transformers, accelerate, deepspeed.
"""
