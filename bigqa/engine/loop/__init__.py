"""The loop: which windows, which step, what is told of it, when it stops, and checkpoints.

Imports: errors, files, interrupts, machine, settings, units, versions, tasks.base, engine.attention, engine.lazy,
engine.offload, engine.optim, engine.pinned, engine.processes, engine.recovery, engine.threads. Never: deepspeed.
"""
