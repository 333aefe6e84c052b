"""The embedded samples: a small Korean data set for each of three tasks, its vocabulary and its model.

Questions lie here, `comments` and `chats` in folders. Made by `bigqa.sample.make_sample` and `bigqa.sample.make_texts`.

Imports: files. Never: torch.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
