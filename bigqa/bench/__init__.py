"""How good was it: strategies measured, each in a process of its own, beside what was predicted.

Imports: errors, files, console, units, versions, settings, strategy, machine, models, tasks, engine, memory, speed,
plan, run. Never: typer.
"""
