"""What a model must have for a task. In: nothing. Out: heads, as transformers names them."""

from dataclasses import dataclass

from bigqa.language import tr


@dataclass(frozen=True)
class Head:
    """What a model must have for a task."""

    auto_class: str
    """Of transformers: finds the class of a model's type."""
    words: str
    """As an error names it, such as "question-answering head"."""
    ending: str
    """Of the names of transformers' classes that have it, such as "ForQuestionAnswering"."""
    labels: int | None = None
    """How wide it is; none: as wide as the configuration says."""


SPANS = Head("AutoModelForQuestionAnswering", tr("question-answering head"), "ForQuestionAnswering", labels=2)
"""Each token as a start, and as an end."""
CLASSES = Head("AutoModelForSequenceClassification", tr("sequence-classification head"), "ForSequenceClassification")
NUMBER = Head(CLASSES.auto_class, CLASSES.words, CLASSES.ending, labels=1)
WORDS = Head("AutoModelForCausalLM", tr("language-model head"), "ForCausalLM")
HEADS = (SPANS, CLASSES, WORDS)
"""Those that have a class of the library each."""
