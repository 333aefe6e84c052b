"""The embedded sample: a small Korean data set, its vocabulary and its model. Made by `bigqa.sample.make_sample`.

Imports: files. Never: torch.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
