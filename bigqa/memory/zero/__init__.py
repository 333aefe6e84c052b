"""DeepSpeed's memory, replayed event by event as its source makes it."""
