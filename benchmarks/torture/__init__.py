"""A torture rig: runs that are broken at random moments, gone on with, and judged. Run: `python -m benchmarks.torture`.

`cases` draws what is broken, when and how; `forks` starts runs without importing torch anew; `inside` counts what a run
does and breaks it; `trial` breaks a run and goes on with it; `judge` compares it with one that nobody broke.
"""
