"""What a strategy would take: the trainer's own step traced without data, replayed through torch's allocator.

Knows no formula about the trainer.
Imports: errors, ranges, strategy, units, machine, engine, tasks.base. Never: typer, rich.
"""
