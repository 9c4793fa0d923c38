"""An engine elsewhere that speaks OpenAI's API: vLLM, SGLang, TGI, LM Studio, llama-server, a hosted one."""
