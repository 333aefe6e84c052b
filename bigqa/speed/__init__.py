"""How fast a strategy would be: a step's work and a device's rates -> seconds; and those rates, measured and kept.

Imports: errors, files, strategy, machine, engine.bits, engine.optim, engine.pinned, engine.recovery, memory. Never:
typer, rich.
"""
