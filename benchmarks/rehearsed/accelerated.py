"""RoBERTa-large on sentence classes with accelerate: 16 sentences of 256 on each GPU, two micro-batches a step."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import RobertaConfig, RobertaForSequenceClassification

accelerator = Accelerator(mixed_precision="fp16", gradient_accumulation_steps=2)
config = RobertaConfig(
    vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    max_position_embeddings=514, type_vocab_size=1,
)  # fmt: skip
model = RobertaForSequenceClassification(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
rows = [{"input_ids": torch.randint(5, 50000, (256,)), "labels": torch.tensor(i % 2)} for i in range(1024)]
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=16, shuffle=True))
model.train()
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(loss.item())
