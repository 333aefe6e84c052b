"""A plain loop: GPT-2 (355M) on sequences of 1,024 tokens, fp32 weights under fp16 autocast, gradients clipped."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

device = torch.device("cuda")
model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)).to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
scaler = torch.amp.GradScaler("cuda")
for step in range(100):
    tokens = torch.randint(0, 50257, (4, 1024), device=device)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(input_ids=tokens, labels=tokens).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    print(step, loss.item())
