"""Entry for `python -m bigqa.cli`."""

from bigqa.cli import main

main()
