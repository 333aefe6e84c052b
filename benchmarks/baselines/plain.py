"""The published loop: fp32, every window padded to the longest, materialised attention, AdamW.

Run: `python -m benchmarks.baselines.plain --tokenizer VOCAB --train-file FILE`.
"""

import time

import torch

from benchmarks.baselines.data import arguments, model_of, order_of, report, windows_of
from bigqa.engine.optim.optimizers import linear_rate


def main() -> None:
    """Train some steps."""
    options = arguments()
    model, tokenizer = model_of(options, _attn_implementation="eager")
    model.to(options.device).train()
    windows, lengths = windows_of(options, tokenizer)
    order = order_of(options, lengths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, eps=1e-6, weight_decay=0.01)
    seconds, counts, tokens = [], [], []
    for step in range(options.steps):
        started = time.perf_counter()
        chosen = order.batch(step)
        for begin in range(0, len(chosen), options.micro_batch):
            part = chosen[begin : begin + options.micro_batch]
            batch = _padded(windows[part], options.seq_len, tokenizer.pad_token_id, options.device)
            loss = model(**batch).loss * len(part) / len(chosen)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 5e-5 * linear_rate(step, 1000, 100)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
        counts.append(len(chosen))
        tokens.append(sum(lengths[index] for index in chosen))
    report(seconds, counts, tokens, options.device)


def _padded(rows: dict, seq_len: int, pad: int, device: str) -> dict[str, torch.Tensor]:
    count = len(rows["input_ids"])
    batch = {"input_ids": torch.full((count, seq_len), pad), "token_type_ids": torch.zeros(count, seq_len).long()}
    batch["attention_mask"] = torch.zeros(count, seq_len).long()
    for index in range(count):
        length = len(rows["input_ids"][index])
        for name in ("input_ids", "token_type_ids"):
            batch[name][index, :length] = torch.tensor(rows[name][index], dtype=torch.long)
        batch["attention_mask"][index, :length] = 1
    batch["start_positions"], batch["end_positions"] = (torch.as_tensor(rows[name]).long() for name in ("start", "end"))
    return {name: tensor.to(device) for name, tensor in batch.items()}


if __name__ == "__main__":
    main()
