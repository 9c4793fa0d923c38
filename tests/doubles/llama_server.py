"""llama.cpp's own server, as xllamacpp carries it: a real engine that speaks OpenAI's API. Ends with its standard input.

usage: llama_server.py MODEL.gguf PORT [ALIAS] [CONTEXT] [KEY] [embedding]
"""

import sys

import xllamacpp

path, port, *more = sys.argv[1:]
alias, context, key, kind = [*more, *["", "2048", "", ""][len(more) :]]
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames = ["127.0.0.1"]
params.port = int(port)
params.n_parallel = 2
params.n_ctx = 2 * int(context)
params.kv_unified = False
params.warmup = False
# Two that wait for one another, beside other tests on two cores, spin for longer than they compute.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.ui = False
params.embedding = bool(kind)
if kind:
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
if alias:
    params.model_alias = {alias}
if key:
    params.api_keys = [key]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
