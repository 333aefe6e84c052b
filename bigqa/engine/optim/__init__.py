"""From gradients to changed weights: precision, masters, moments, 8-bit and random rounding, release.

Imports: errors, strategy, engine.attention, engine.cudart, engine.lazy. Never: accelerate, deepspeed.
"""
