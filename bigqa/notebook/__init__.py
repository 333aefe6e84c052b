"""bigqa within a notebook: its commands as functions, and what they return as tables and charts.

Training and rehearsing are processes of their own, as on a command line: what they hold ends with them, and a notebook
that is interrupted saves.
Imports: errors, files, language, ranges, units, plan, show, run.options. Never: torch.
"""
