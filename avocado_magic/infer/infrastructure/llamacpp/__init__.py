"""The embedded engine: llama.cpp (xllamacpp) behind the ports of the domain."""
