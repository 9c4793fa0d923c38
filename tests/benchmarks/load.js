// Closed-loop load: node load.js BASE CONCURRENCY SECONDS KEY|- stream|nostream
// One JSON line: requests per second, errors, p50 and p99 of the time to the first byte in ms. A second of warming up before.
const http = require('http');
const [, , base, concurrency, seconds, key, mode] = process.argv;
const url = new URL(base), agent = new http.Agent({ keepAlive: true, maxSockets: +concurrency });
const payload = JSON.stringify({ model: 'm:latest', messages: [{ role: 'user', content: 'hi' }], stream: mode !== 'nostream' });
const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload), ...(key !== '-' ? { authorization: 'Bearer ' + key } : {}) };
const now = () => Number(process.hrtime.bigint()) / 1e6;
let errors = 0, done = 0, first = [], measuring = false;
const begin = now(), warm = begin + 1000, end = warm + 1000 * seconds;
function one() {
  const start = now(); let seen = false;
  const again = ok => { if (!ok) errors++; if (measuring) done++; step(); };
  const req = http.request({ host: url.hostname, port: url.port, path: '/api/chat', method: 'POST', agent, headers }, res => {
    res.on('data', () => { if (!seen) { seen = true; if (measuring) first.push(now() - start); } });
    res.on('end', () => again(res.statusCode === 200));
    res.on('aborted', () => again(false));
  });
  req.on('error', () => again(false));
  req.end(payload);
}
function step() {
  const t = now();
  if (!measuring && t >= warm) { measuring = true; done = 0; first = []; }
  if (t < end) return one();
  first.sort((a, b) => a - b);
  const q = p => +first[Math.min(first.length - 1, Math.floor(first.length * p))].toFixed(3);
  console.log(JSON.stringify({ rps: +(done * 1000 / (t - warm)).toFixed(1), errors, ttfb50: q(.5), ttfb99: q(.99) }));
  process.exit(0);
}
for (let i = 0; i < +concurrency; i++) one();
