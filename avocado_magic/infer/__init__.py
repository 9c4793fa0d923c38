"""avocado-infer: the gateway, and with its llama.cpp backend the embedded engine.

Four layers: `api` → `service` → `domain` ← `infrastructure`, wired in `app.py` and nowhere else.
"""
