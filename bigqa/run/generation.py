"""Answers of a language model to prompts. In: a model's folder, JSON lines. Out: an answer for each, as it comes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.run.prediction import Answerer
from bigqa.tasks.lm.conversations import end_of, rendered
from bigqa.tasks.tables import read_table


def generated(answerer: Answerer, file: Path, most: int) -> Iterator[dict[str, Any]]:
    """Yield each line of a file with "completion": at most so many tokens, the likeliest each time.

    A line has `messages`, or a `prompt`; where its last message is the assistant's, as in data that is trained on, that
    one is left away and answered anew. Raises: BigqaError with the row.
    """
    for row, where in read_table(file):
        if "messages" in row:
            prompt = rendered(_asked(row["messages"]), answerer.tokenizer, where, to_answer=True)
        elif isinstance(row.get("prompt"), str) and row["prompt"]:
            prompt = row["prompt"]
        else:
            raise BigqaError(tr('{where} has neither "messages" nor a "prompt"', where=where))
        yield row | {"completion": complete(answerer, prompt, most)}


def _asked(messages: Any) -> Any:
    """Return messages without a last one that is an answer."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return messages[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else messages


def complete(answerer: Answerer, prompt: str, most: int) -> str:
    """Return what follows a prompt."""
    import torch

    tokenizer, model = answerer.tokenizer, answerer.model
    ids = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    given = torch.tensor([ids], device=answerer.device)
    found = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        eos_token_id=end_of(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)).strip()
