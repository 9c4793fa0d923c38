// Ask the service at $URL through the JavaScript client named in the first argument; prints a JSON list of what it
// answered. Runs beside the node_modules of `package.json`. Every answer is to the same prompt, whole and streamed.

const { URL, KEY, MODEL, PROMPT } = process.env;

const clients = {
  async "ollama-js"() {
    const { Ollama } = await import("ollama");
    const ollama = new Ollama({ host: URL, headers: { Authorization: `Bearer ${KEY}` } });
    const request = {
      model: MODEL,
      messages: [{ role: "user", content: PROMPT }],
      options: { num_predict: 8, temperature: 0 },
    };
    const whole = await ollama.chat(request);
    let streamed = "";
    for await (const piece of await ollama.chat({ ...request, stream: true })) streamed += piece.message.content;
    return [whole.message.content, streamed];
  },

  async "AI SDK"() {
    const { generateText, streamText } = await import("ai");
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const avocado = createOpenAICompatible({ name: "avocado", baseURL: `${URL}/v1`, apiKey: KEY });
    const request = { model: avocado(MODEL), prompt: PROMPT, maxOutputTokens: 8, temperature: 0 };
    const whole = await generateText(request);
    let streamed = "";
    for await (const piece of streamText(request).textStream) streamed += piece;
    return [whole.text, streamed];
  },
};

console.log(JSON.stringify(await clients[process.argv[2]]()));
