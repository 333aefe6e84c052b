"""What others measured on real cards, done again on a null GPU. Run by `benchmarks.public_gpu`.

In: the folder of public figures. Out: one JSON a line: source, series, what, the public figure and torch's own. Bytes.
"""

import csv
import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

Run = Callable[[], Any]
CARDS = {"NVIDIA H100 PCIe": "NVIDIA H100 80GB HBM3"}
"""Cards of the figures -> what stands in for them: of the same capability, and sizes here do not hang on the rest."""
BATCHES = [(4, 256), (4, 512), (8, 256), (8, 512), (16, 256), (16, 512)]
DEVICE = "cuda"


def cross_entropy(V: int, B: int, T: int) -> Run:
    inputs = torch.randn(B * T, V, requires_grad=True, device=DEVICE)
    target = torch.randint(V, (B * T, 1), device=DEVICE).squeeze(1)
    loss = nn.CrossEntropyLoss()
    return lambda: loss(inputs, target).backward()


def kl_div(V: int, B: int, T: int) -> Run:
    loss = nn.KLDivLoss(reduction="batchmean")
    inputs = torch.randn(B * T, V, requires_grad=True, device=DEVICE).log_softmax(dim=-1)
    target = torch.randn(B * T, V, device=DEVICE).softmax(dim=-1)
    return lambda: loss(inputs, target).backward(retain_graph=True)


def embedding(V: int, B: int, T: int, D: int, **_: Any) -> Run:
    ids = torch.randint(0, V, (B, T), device=DEVICE)
    layer, other = (nn.Embedding(V, D).to(DEVICE) for _ in range(2))  # the benchmark's own lies beside it

    def full() -> None:
        assert other is not None
        out = layer(ids)
        out.backward(torch.randn_like(out))

    return full


def _normed(layer: nn.Module, inputs: torch.Tensor, other: nn.Module) -> Run:
    """`other`: the benchmark's own layer of the same size, which lies beside the one that is measured."""
    gradient = torch.randn_like(inputs)
    inputs.requires_grad_(True)

    def full() -> None:
        assert other is not None
        layer(inputs).backward(gradient, retain_graph=True)

    return full


def layer_norm(N: int, M: int, eps: float, **_: Any) -> Run:
    layer, other = (nn.LayerNorm(N, eps).to(DEVICE) for _ in range(2))
    return _normed(layer, torch.randn(M, N, device=DEVICE), other)


def rms_norm(H: int, M: int, eps: float, **_: Any) -> Run:
    layer, other = (LlamaRMSNorm(H, eps).to(DEVICE) for _ in range(2))
    return _normed(layer, torch.randn(M, H, device=DEVICE, dtype=torch.bfloat16), other)


def gated(T: int, hidden_size: int, intermediate_size: int, hidden_act: str, **more: Any) -> Run:
    config = LlamaConfig(hidden_size=hidden_size, intermediate_size=intermediate_size, hidden_act=hidden_act)
    layer = LlamaMLP(config).to(DEVICE).to(torch.bfloat16)
    shape = (more.get("B") or more["bsz"], T, hidden_size)
    inputs = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn_like(inputs)
    return lambda: layer(inputs).backward(gradient, retain_graph=True)


OPERATORS: dict[str, Callable[..., Run]] = {
    "cross_entropy": cross_entropy, "kl_div": kl_div, "embedding": embedding, "layer_norm": layer_norm,
    "rms_norm": rms_norm, "swiglu": gated, "geglu": gated,
}  # fmt: skip


def peak(run: Run, times: int = 10) -> int:
    """Return the median of the peaks, as the benchmark takes it."""
    found = []
    for _ in range(times):
        torch.cuda.reset_peak_memory_stats()
        run()
        found.append(torch.cuda.max_memory_allocated())
    return sorted(found)[times // 2]


def liger(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the operators that were measured on this card, forward and backward."""
    with (folder / "liger.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kernel_provider"] in ("huggingface", "torch")]
    for row in rows:
        name, card = row["kernel_name"], CARDS.get(row["gpu_name"], row["gpu_name"])
        is_whole = row["metric_name"] == "memory" and row["kernel_operation_mode"] == "full"
        if name in OPERATORS and is_whole and card == torch.cuda.get_device_name():
            gc.collect()
            torch.cuda.empty_cache()
            torch._C._cuda_clearCublasWorkspaces()
            size = int(float(row["x_value"]))
            words = json.loads(row["extra_benchmark_config_str"])
            shape = words | {row["x_name"]: size}
            found = peak(OPERATORS[name](**shape))
            real = round(float(row["y_value_50"]) * 2**20)
            width = f" of {words['D']}" if name == "embedding" else ""
            series = f"{name}{width} ({row['gpu_name'].removeprefix('NVIDIA ')})"
            yield {"source": "Liger", "series": series, "what": json.dumps(shape), "public": real, "null": found}


def _bert_step(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    out = model(input_ids=ids, attention_mask=mask)
    out.logits.sum().backward()


def bert_table(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield transformers' table of BERT-base in fp16: forward and backward, no optimizer."""
    figures = [json.loads(line) for line in (folder / "figures.jsonl").read_text(encoding="utf-8").splitlines()]
    known = {one["id"]: one["value_bytes_or_text"] for one in figures}
    for attention in ("eager", "sdpa"):
        torch.set_default_dtype(torch.float16)
        with torch.device(DEVICE):
            model = BertLMHeadModel(BertConfig(is_decoder=False, attn_implementation=attention))
        torch.set_default_dtype(torch.float32)
        model.train()
        for batch, length in BATCHES:
            ids = torch.randint(0, 30000, (batch, length)).to(DEVICE)
            mask = torch.ones_like(ids)
            torch.cuda.empty_cache()

            real = known[f"sdpa-bertbase-fp16-{attention}-b{batch}-s{length}"]
            series, what = f"BERT-base fp16, {attention} (A100-80GB)", f"{batch} x {length}"
            yield {
                "source": "transformers",
                "series": series,
                "what": what,
                "public": real,
                "null": peak(lambda of=(model, ids, mask): _bert_step(*of), 3),
            }


ANSWER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)
YES = ANSWER(lambda size: 1)
"""To the library's question whether nothing is masked: it then hands no mask on, as on the real card."""


def main() -> None:
    """Do what was measured on this card."""
    folder = Path(sys.argv[1])
    ctypes.CDLL("libcuda.so.1").null_on_read(YES)
    for line in liger(folder):
        print(json.dumps(line), flush=True)
    if "A100" in torch.cuda.get_device_name():
        for line in bert_table(folder):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
