"""What of a machine stands in a training's way, what that costs, how it is mended. In: a folder. Out: findings.

No text in here names a folder, a user or a host: findings are made to be shown in public.
Imports: errors, files, ranges, units, versions, machine, engine.extensions, engine.processes.
"""
