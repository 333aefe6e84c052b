#!/usr/bin/env bash
# Several processes on one or more machines through torchrun. On every machine, with its own NODE_RANK:
#   NODES=2 NODE_RANK=0 MASTER=10.0.0.1 GPUS=8 bash torchrun.sh --plan plan.json --train-file FILE --out RUN
# RUN must be on a file system that all machines share.
set -euo pipefail
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "${GPUS:-1}" \
    --master_addr "${MASTER:-127.0.0.1}" --master_port "${PORT:-29500}" \
    -m bigqa.train "$@"
