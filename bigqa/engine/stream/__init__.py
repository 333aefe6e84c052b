"""Layer streaming: weights, gradients and states live on the host, and a device holds two layers at a time.

`layers` finds a model's layers and runs what is around them, `store` keeps weights and states, in memory or on a `disk`
as the `shelf` has it, `link` moves what comes and goes, `staging` brings weights, `tables` looks embeddings up on the
host, `borders` keeps activations between layers, `passes` is the step, `sums` adds up over processes, `update` steps on
the host, `beside` has it done beside the computation. Imports: errors, files, units, strategy, tasks.base,
engine.attention, engine.layers, engine.lazy, engine.loop.order, engine.loop.step, engine.modules, engine.optim,
engine.pinned, engine.threads. Never: accelerate, deepspeed.
"""
