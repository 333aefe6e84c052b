"""BERT-large on question answering with transformers' `Trainer`: 16 windows of 384, mixed bf16."""

import torch
from transformers import BertConfig, BertForQuestionAnswering, Trainer, TrainingArguments

config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
model = BertForQuestionAnswering(config)
rows = [
    {
        "input_ids": torch.randint(1000, 30000, (384,)),
        "attention_mask": torch.ones(384, dtype=torch.long),
        "start_positions": torch.tensor(7),
        "end_positions": torch.tensor(9),
    }
    for _ in range(256)
]
settings = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=16,
    bf16=True,
    num_train_epochs=1,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
)
Trainer(model=model, args=settings, train_dataset=rows).train()
