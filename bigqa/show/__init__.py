"""What people see of a plan: tables, words, a page, JSON. Numbers become text here and nowhere else.

Imports: errors, files, units, console, machine, memory, plan, doctor. Never: torch, typer.
"""
