"""A person's own training command on a GPU that is not there: what it needs, told by torch itself.

`inside` is loaded into the person's own processes, and imports nothing of bigqa.
Imports: errors, files, units, console, nullgpu. Never: typer.
"""

from bigqa import also_called

also_called(__name__)  # `bigqa.rehearse(...)`
