"""Do it: options -> settings -> a run folder, from the launcher's processes to the model that is handed over.

Imports: errors, files, interrupts, lock, console, ranges, versions, settings, strategy, machine, models, tasks, engine,
plan, units, pages.
"""
