"""`bigqa table`: run reports as tables, charts and a page, and the planner's grade. Nothing is measured here.

Imports: errors, files, units, console, strategy, machine, models, memory, plan, show, bench. Never: torch, typer.
"""
