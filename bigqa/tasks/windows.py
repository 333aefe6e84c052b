"""Windows of questions on long contexts. In: a fast tokenizer, lengths, questions. Out: token ids, offsets, targets.

A window is the question, cut to its longest length, and a slice of the context, in the tokenizer's own template of a
pair. Slices advance by `doc_stride` tokens until one reaches the context's end, as in BERT's published code.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.ranges import Ranged
from bigqa.tasks.squad import Question


class Lengths(Ranged):
    """Lengths of windows, in tokens."""

    seq_len: int = 512
    doc_stride: int = 128
    """Tokens that each next window advances."""
    max_query_length: int = 64
    max_answer_length: int = 30


@dataclass(frozen=True, slots=True)
class Template:
    """The special tokens around a pair, as the tokenizer sets them, and their token types."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    types: tuple[int, int, int, int, int]
    """Of prefix, question, middle, context, suffix."""

    @property
    def size(self) -> int:
        """Special tokens in a window."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True, slots=True)
class Window:
    """One window. Context tokens lie at [context_begin, context_end) of `input_ids`."""

    input_ids: list[int]
    token_type_ids: list[int]
    context_begin: int
    context_end: int
    first_token: int
    """Index in the whole context of the window's first context token."""
    max_context_lo: int
    max_context_hi: int
    """Context tokens that have their widest surroundings in this window: [lo, hi) of `input_ids`."""


def learn_template(tokenizer: Any) -> Template:
    """Read the template off one encoded pair."""
    encoding = tokenizer.backend_tokenizer.encode("가", "나")
    first = [index for index, part in enumerate(encoding.sequence_ids) if part == 0]
    second = [index for index, part in enumerate(encoding.sequence_ids) if part == 1]
    if not first or not second:
        raise BigqaError(tr("this tokenizer gives no tokens for plain Hangul; check its vocabulary"))
    ids, types = encoding.ids, encoding.type_ids
    prefix, middle = tuple(ids[: first[0]]), tuple(ids[first[-1] + 1 : second[0]])
    suffix = tuple(ids[second[-1] + 1 :])
    kinds = (
        types[0] if prefix else 0,
        types[first[0]],
        types[first[-1] + 1] if middle else 0,
        types[second[0]],
        types[-1],
    )
    return Template(prefix, middle, suffix, kinds)


def window_starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Return where each slice of a context starts; the last one reaches its end."""
    starts = [0]
    while starts[-1] + room < num_tokens:
        starts.append(starts[-1] + min(stride, room))
    return starts


def max_context_ranges(starts: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return, for each slice, the range of context tokens that have their widest surroundings in it.

    A token's surroundings in a slice are min(tokens to its left, tokens to its right) + 0.01 x the slice's length, and
    the first slice wins a tie, as in BERT's published code. The choice moves rightwards only, so ranges are contiguous.
    """
    total = starts[-1] + sizes[-1]
    if len(starts) == 1:
        return [(0, total)]
    ranges: list[tuple[int, int]] = []
    begin = 0
    for index in range(len(starts)):
        end = total if index == len(starts) - 1 else begin
        while end < total and _best_slice(end, starts, sizes) <= index:
            end += 1
        ranges.append((begin, end))
        begin = end
    return ranges


def _best_slice(token: int, starts: Sequence[int], sizes: Sequence[int]) -> int:
    best, best_score = 0, float("-inf")
    # Backwards from the last slice that has begun, so that a long document costs no more per token than a short one.
    for index in range(bisect_right(starts, token) - 1, -1, -1):
        end = starts[index] + sizes[index]
        if end <= token:
            break
        score = min(token - starts[index], end - 1 - token) + 0.01 * sizes[index]
        if score >= best_score:
            best, best_score = index, score
    return best


def make_windows(
    query_ids: list[int], context_ids: list[int], template: Template, lengths: Lengths
) -> Iterator[Window]:
    """Yield a question's windows."""
    query_ids = query_ids[: lengths.max_query_length]
    room = lengths.seq_len - template.size - len(query_ids)
    if room < 1:
        raise BigqaError(
            tr("seq_len {seq_len} leaves no room for the context; lower max_query_length", seq_len=lengths.seq_len)
        )
    starts = window_starts(len(context_ids), room, lengths.doc_stride)
    sizes = [min(room, len(context_ids) - start) for start in starts]
    head = [*template.prefix, *query_ids, *template.middle]
    types = _types(template, len(query_ids))
    for start, size, (lo, hi) in zip(starts, sizes, max_context_ranges(starts, sizes), strict=True):
        begin = len(head)
        yield Window(
            input_ids=[*head, *context_ids[start : start + size], *template.suffix],
            token_type_ids=types + [template.types[3]] * size + [template.types[4]] * len(template.suffix),
            context_begin=begin,
            context_end=begin + size,
            first_token=start,
            max_context_lo=begin + lo - start,
            max_context_hi=begin + hi - start,
        )


def _types(template: Template, query_size: int) -> list[int]:
    prefix, query, middle = template.types[:3]
    return [prefix] * len(template.prefix) + [query] * query_size + [middle] * len(template.middle)


def answer_tokens(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """Return the first and last token of the characters [begin, end): the span that gives exactly them where the
    tokens' borders allow, else the smallest that covers them; (-1, -1) where no token does."""
    covering = [index for index, (a, b) in enumerate(offsets) if b > begin and a < end and b > a]
    if not covering:
        return -1, -1
    return covering[0], covering[-1]


def target(window: Window, first: int, last: int) -> tuple[int, int]:
    """Return an answer's place in a window, or (0, 0) where the window does not hold all of it."""
    shift = window.context_begin - window.first_token
    begin, end = first + shift, last + shift
    if first < 0 or begin < window.context_begin or end >= window.context_end:
        return 0, 0
    return begin, end


def question_tokens(tokenizer: Any, questions: Sequence[Question]) -> list[list[int]]:
    """Return the tokens of questions, without special ones."""
    texts = [question.question for question in questions]
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
