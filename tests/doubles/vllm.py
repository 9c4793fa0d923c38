"""Stand-in for the vllm program: its command line, its log, its key from the environment; llama.cpp's server does the work.

FAKE_VLLM: the model file. FAKE_VLLM_TROUBLE: "memory" to end as vLLM does where the GPU's memory is too small, "slow" to load for some seconds.
"""

import argparse
import os
import sys
import time

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
for flag in ("host", "port", "served-model-name", "max-model-len", "max-num-seqs"):
    parser.add_argument(f"--{flag}")
given = parser.parse_args()
trouble = os.environ.get("FAKE_VLLM_TROUBLE", "")
print(f"INFO Starting to load model {given.model}...", flush=True)
if trouble == "memory":
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 14.00 GiB.", flush=True)
    sys.exit(1)
for percent in range(0, 101, 10) if trouble == "slow" else ():
    print(f"Loading safetensors checkpoint shards: {percent}% Completed", flush=True)
    time.sleep(0.4)
params = xllamacpp.CommonParams()
params.model.path = os.environ["FAKE_VLLM"]
params.hostnames = [given.host]
params.port = int(given.port)
params.n_ctx = int(given.max_model_len or 2048)
params.model_alias = {given.served_model_name}
params.api_keys = [os.environ["VLLM_API_KEY"]]
params.warmup = params.ui = False
server = xllamacpp.Server(params)
print(f"INFO: Uvicorn running on {server.listening_address}", flush=True)
while True:
    time.sleep(3600)
