"""Several runs: the same with other seeds, or a search for better settings. In: options. Out: a folder of run folders.

Each run is what `bigqa train` makes of its words, in processes of its own. What is done is known from the folders (of a
sweep, from Optuna's storage), so that the same command goes on after whatever ended it.
Imports: errors, files, interrupts, lock, who, console, ranges, units, settings, machine, models, tasks, plan,
engine.loop.evaluation, show, run, pages.
"""
