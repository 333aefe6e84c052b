"""XLM-R-large's size on masked tokens with DeepSpeed's ZeRO-3, in bf16: 8 sequences of 512 on each GPU."""

import deepspeed
import torch
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

config = XLMRobertaConfig(
    vocab_size=250002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    max_position_embeddings=514, type_vocab_size=1,
)  # fmt: skip
settings = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3},
}
deepspeed.init_distributed()
model = XLMRobertaForMaskedLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
for _ in range(100):
    tokens = torch.randint(5, 250000, (8, 512), device=engine.device)
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
