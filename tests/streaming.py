"""Small models, streamed or not, and what they learn. In: a configuration and a strategy. Out: losses and norms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, BertConfig, DebertaV2Config, LlamaConfig, ModernBertConfig

from bigqa.engine.build import build
from bigqa.engine.loop.order import mix_seed
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.processes import Processes
from bigqa.memory.depth import depths_for
from bigqa.memory.stream import StreamedRuns
from bigqa.models.sources import first_position
from bigqa.settings import make_settings
from bigqa.strategy import Strategy
from bigqa.tasks.base import Batch
from bigqa.tasks.qa.task import QuestionAnswering

MICRO_BATCHES, WINDOWS = 3, 2
EQUAL = 1e-6
"""Largest relative difference of a loss or a norm, in fp32."""
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SMALL, **DROPS, pad_token_id=0),
    "llama": lambda: LlamaConfig(**SMALL, attention_dropout=0.1, num_key_value_heads=1),
    # Its relative positions are trained, and handed to every layer.
    "deberta": lambda: DebertaV2Config(
        **SMALL, **DROPS, relative_attention=True, pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm",
        position_buckets=8, share_att_key=True,
    ),
    "modernbert": lambda: ModernBertConfig(
        **SMALL, global_attn_every_n_layers=2, local_attention=8, attention_dropout=0.1, embedding_dropout=0.1,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
PLAIN = Strategy(device="cpu")
STREAM = Strategy(device="cpu", stream=True)


def task_of(config: Any) -> QuestionAnswering:
    return QuestionAnswering(0, getattr(config, "type_vocab_size", 0) > 1, first_position(config))


def parts_of(config: Any, strategy: Strategy, processes: Processes, nvme: Path | None = None) -> Parts:
    torch.manual_seed(processes.rank)  # of several, the first one's weights are taken
    model = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
    precision = "bf16" if strategy.precision == "bf16-sr" else strategy.precision
    lengths = {"seq_len": 48, "doc_stride": 8, "max_query_length": 8}
    options: dict[str, Any] = {"model": "x", "train_file": Path("x"), "out": Path("x"), "device": "cpu", **lengths}
    settings = make_settings(**options, strategy=strategy, precision=precision, clip=0.5, nvme=nvme)
    parts = build(model, task_of(config), settings, processes)
    parts.model.train()
    return parts


def runs_of(config: Any) -> StreamedRuns:
    """Return the predictions of a small model."""

    def make(changed: Any) -> Any:
        return AutoModelForQuestionAnswering.from_config(changed, dtype=torch.float32)

    return StreamedRuns(config, make, task_of(config), lambda: depths_for(config, make))


def batches(config: Any, step: int, *, packed: bool) -> list[Batch]:
    """Return micro-batches of windows of many lengths; the padding's row of the embedding is among those looked up."""
    generator = torch.Generator().manual_seed(step)

    def window() -> dict[str, Any]:
        length = int(torch.randint(8, 40, (1,), generator=generator))
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        return {"input_ids": ids, "token_type_ids": [0] * 4 + [1] * (length - 4), "start": 3, "end": length - 2}

    make = task_of(config).pack if packed else task_of(config).collate
    return [make([window() for _ in range(WINDOWS)]) for _ in range(MICRO_BATCHES)]


def learned(parts: Parts, config: Any, first: int, last: int, *, packed: bool) -> torch.Tensor:
    """Take steps; return losses and norms, [steps, 2]."""
    found = []
    for step in range(first, last):
        parts.update.set_rate(5e-3)
        parts.update.begin(step, 42)
        torch.manual_seed(mix_seed(42, step))
        micro_batches = batches(config, step, packed=packed)
        found.append(torch.stack(train_step(parts, micro_batches, MICRO_BATCHES * WINDOWS)).detach())
    return torch.stack(found).double()


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).abs() / other.abs()).max())
