"""Fulfils the ports of the domain: the engine client and the llama.cpp backend."""
