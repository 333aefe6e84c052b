"""DeepSpeed's memory, replayed event by event as its source makes it.

Imports: engine, memory, strategy, tasks. Never: deepspeed.
"""
