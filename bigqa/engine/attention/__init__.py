"""Attention by a kernel that is named, and windows packed end to end, kept apart.

Imports: errors, engine.alike, engine.bits, engine.recovery, tasks.base. Never: accelerate, deepspeed.
"""
