#!/usr/bin/env bash
# Trains one run on all hosts of a TPU slice, with a run directory that all hosts see:
#
#   TPU=my-slice ZONE=us-central2-b examples/multi_host/tpu_slice.sh \
#     --config=camvid --config.dtype=bfloat16 --workdir=/mnt/shared/runs/camvid
#
# The same command goes on from the last checkpoint, on this slice or another one. Ctrl-C may leave
# the processes running: `pkill -TERM -f "jseg train"` on one worker saves and ends all.
set -euo pipefail

arguments=$(printf "%q " "$@")
exec gcloud compute tpus tpu-vm ssh "${TPU:?the name of the slice}" \
  --zone="${ZONE:?its zone}" \
  --worker=all \
  --command="${JSEG:-jseg} train $arguments --distributed"
