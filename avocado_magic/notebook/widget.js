// The live panel. Everything shown is set as text, never as HTML. The key is asked for on a click,
// arrives as a custom message and stays in this page: it is never a trait, so never in a saved notebook.
const BEAT_LIMIT_MS = 15000;
const HELLO_MS = 10000;
const WAIT_MS = 1000;
const PARTS = ["engine", "gateway", "tunnel", "announcer"];

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function copyable(label) {
  const row = element("div", "row"), field = element("input"), button = element("button", "", "copy");
  field.readOnly = true;
  button.type = "button";
  button.title = `copy the ${label}`;
  row.append(element("span", "label", label), field, button);
  button.addEventListener("click", async () => {
    field.select();
    try {
      // Undefined on a plain-http page that is not localhost: then the selected field is what is left.
      await navigator.clipboard.writeText(field.value);
      button.textContent = "copied";
    } catch {
      button.textContent = document.execCommand && document.execCommand("copy") ? "copied" : "press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return { row, field, button };
}

function lasting(ms) {
  const s = Math.max(0, Math.floor(ms / 1000)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

function render({ model, el }) {
  const root = element("div", "avocado-panel"), head = element("div", "row"), chips = element("div", "row");
  const url = copyable("url"), local = copyable("local"), key = copyable("key");
  const reveal = element("button", "", "show key"), models = element("div", "row dim"), foot = element("div", "row dim");
  const problem = element("div", "problem"), me = Math.random().toString(36).slice(2);
  reveal.type = "button";
  key.field.type = "password";
  key.field.value = "";
  key.field.placeholder = "hidden";
  key.row.append(reveal);
  root.append(head, chips, url.row, local.row, key.row, models, problem, foot);
  el.append(root);
  let lastBeat = Date.now(), waiting = null, shown = false;

  function draw() {
    const service = model.get("service") || {}, parts = service.parts || {};
    head.replaceChildren(element("span", "name", `avocado ${service.name || ""}`), element("span", "", service.state || ""));
    chips.replaceChildren(...PARTS.map(name => {
      const part = parts[name] || {}, state = part.state || "";
      const kind = (service.moods || {})[name] || "busy";
      const chip = element("span", `chip ${kind}`, `${name}: ${(service.details || {})[name] || state}`);
      chip.title = part.error || state;
      return chip;
    }));
    const running = service.serving;
    url.field.value = service.url || "";
    url.row.style.display = service.url ? "" : "none";
    local.field.value = service.local_url || "";
    local.row.style.display = running && service.local_url ? "" : "none";
    key.row.style.display = running ? "" : "none";
    models.textContent = (service.models || []).length ? `models: ${service.models.join(", ")}` : "";
    const errors = PARTS.filter(name => (parts[name] || {}).error).map(name => `${name}: ${parts[name].error}  (%avocado_logs ${name})`);
    if (service.problem) errors.unshift(service.problem);
    problem.textContent = errors.join("\n");
    tick();
  }

  function tick() {
    const service = model.get("service") || {}, over = service.over;
    const gone = !over && Date.now() - lastBeat > BEAT_LIMIT_MS;
    root.classList.toggle("gone", gone || service.state === "stopped");
    const notes = [];
    if (gone) notes.push("no sign of life from the kernel: this may be out of date");
    else if (!over && service.started_at) notes.push(`up ${lasting(Date.now() - Date.parse(service.started_at))}`);
    if (!over && service.announced) notes.push(`announced ${lasting(Date.now() - Date.parse(service.announced.at))} ago, ${service.announced_words}`);
    if (!over && service.ends_at) notes.push(`ends in ${lasting(Date.parse(service.ends_at) - Date.now())}`);
    if (waiting && Date.now() - waiting > WAIT_MS) notes.push("waiting for the running cell");
    foot.textContent = [...notes, ...(over ? [] : service.notices || [])].join(" · ");
  }

  function alive() { lastBeat = Date.now(); draw(); }
  function onMessage(message) {
    if (message.type === "key" && message.for === me) {
      waiting = null;
      key.field.type = "text";
      key.field.value = message.key || "(there is none)";
      reveal.textContent = "hide key";
      shown = true;
      tick();
    }
  }
  reveal.addEventListener("click", () => {
    if (shown) {
      key.field.value = ""; key.field.type = "password"; reveal.textContent = "show key"; shown = false;
      return;
    }
    waiting = Date.now();
    model.send({ type: "reveal", for: me });
  });
  const hello = () => model.send({ type: "hello", for: me });
  model.on("change:service", alive);
  model.on("change:beat", alive);
  model.on("msg:custom", onMessage);
  const ticker = setInterval(tick, 1000), greeter = setInterval(hello, HELLO_MS);
  hello();
  draw();
  return () => {
    clearInterval(ticker);
    clearInterval(greeter);
    model.off("change:service", alive);
    model.off("change:beat", alive);
    model.off("msg:custom", onMessage);
  };
}

export default { render };
