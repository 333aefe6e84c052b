"""How data is read and fetched: what goes together, and what is said when a server breaks off."""

from typing import Any

import pytest

from bigqa.errors import BigqaError
from bigqa.tasks import download, features
from bigqa.tasks.squad import Question


def question(number: int, context: str) -> Question:
    return Question(id=str(number), title="t", context=context, question="?", answers=())


def test_a_context_that_many_questions_share_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_CHARACTERS", 25)
    monkeypatch.setattr(features, "BATCH_QUESTIONS", 4)
    contexts = ["a" * 10] * 3 + ["b" * 10] + ["c" * 20, "c" * 20, "d" * 30]
    batches = list(features._batches(question(number, text) for number, text in enumerate(contexts)))
    assert [[int(one.id) for one in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5], [6]]
    assert list(features._batches([])) == []


class BrokenOff:
    def __init__(self, error: Exception) -> None:
        self.error, self.left = error, [b"abc"]

    def read1(self, size: int) -> bytes:
        if self.left:
            return self.left.pop()
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
        (download.http.client.IncompleteRead(b""), "IncompleteRead"),
        (OSError(), "OSError"),
    ],
)
def test_a_download_that_breaks_off_says_why_and_how_to_go_on(error: Exception, said: str) -> None:
    chunks: Any = download._chunks("https://example.org/a.json", BrokenOff(error))
    assert next(chunks) == b"abc"
    with pytest.raises(BigqaError, match=said) as caught:
        next(chunks)
    assert "same command again" in str(caught.value) and "https://example.org/a.json" in str(caught.value)
