// An engine that costs next to nothing: node upstream.js PORT CHUNKS [GAP_MS]. A chat streams CHUNKS pieces,
// one write each, GAP_MS apart; "stream": false answers with one object.
const http = require('http');
const [port, chunks, gap] = [+process.argv[2], +process.argv[3], +process.argv[4] || 0];
const line = (text, done) => JSON.stringify({
  model: 'm:latest', created_at: '2026-01-01T00:00:00Z', message: { role: 'assistant', content: text }, done,
  ...(done ? { done_reason: 'stop', total_duration: 1, prompt_eval_count: 5, prompt_eval_duration: 1, eval_count: chunks, eval_duration: 1 } : {}),
}) + '\n';
const token = line(' token', false), last = line('', true);
http.createServer((req, res) => {
  let size = 0, begin = '';
  req.on('data', d => { size += d.length; if (begin.length < 4096) begin += d; });
  req.on('end', () => {
    if (req.url !== '/api/chat') { res.setHeader('content-type', 'application/json'); return res.end('{"version":"0.24.0","models":[]}'); }
    if (begin.includes('"stream":false')) { res.setHeader('content-type', 'application/json'); return res.end(last); }
    res.setHeader('content-type', 'application/x-ndjson');
    let sent = 0, gone = false;
    res.on('close', () => { gone = true; });
    const turn = () => { if (gone) return; if (sent++ < chunks) { res.write(token); gap ? setTimeout(turn, gap) : setImmediate(turn); } else res.end(last); };
    turn();
  });
}).listen(port, '127.0.0.1');
