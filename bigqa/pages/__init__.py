"""Pages of runs that need nothing beside them. In: a run's folder, or results. Out: one HTML file, shapes in it as SVG.

Imports: errors, files, units, console.
"""
