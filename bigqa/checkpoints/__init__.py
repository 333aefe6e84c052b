"""Checkpoints of a run, looked at and taken elsewhere: listed, verified, and in the forms of other libraries.

Imports: errors, files, lock, units, settings, engine, run. Never: typer, deepspeed.
"""
