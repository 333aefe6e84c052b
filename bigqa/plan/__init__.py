"""What to do: a question, strategies judged for a machine, the best of them, what comes after it, and a plan's files.

Imports: errors, files, ranges, units, versions, settings, strategy, machine, models, tasks, engine, memory, speed.
Never: typer, rich.
"""
