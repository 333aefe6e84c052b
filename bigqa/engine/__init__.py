"""The training step and what is around it, one file per concern: what the predictor traces is what is trained.

Each axis of `Strategy` is a file here (adapters, recompute, offload, sharding, quantized) or in a room of its own:
`attention` (kernels, windows without padding), `optim` (from gradients to weights), `loop` (steps, order, checkpoints).
`build` puts a step together. Knows no concrete task, and nothing of plans.
Imports: errors, files, interrupts, ranges, units, settings, strategy, versions, machine, tasks.base. Never: typer.
"""
