// The card. Everything shown is set as text, never as HTML. Keys are asked for on a click, arrive as custom messages and stay
// in this page: they are never traits, so never in a saved notebook.
const BEAT_LIMIT_MS = 15000;
const HELLO_MS = 10000;
const WAIT_MS = 1000;
const LOG_MS = 2000;
const SHAPES = { good: "●", bad: "▲", calm: "■", busy: "◐" };
const LOGS = ["engine", "gateway", "tunnel", "announcer", "supervisor"];

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(label, title, onClick) {
  const node = element("button", "", label);
  node.type = "button";
  if (title) { node.title = title; node.setAttribute("aria-label", title); }
  node.addEventListener("click", () => onClick(node));
  return node;
}

function mark(mood) {
  const node = element("span", `mark ${mood}`, SHAPES[mood] || SHAPES.busy);
  node.setAttribute("aria-hidden", "true");
  return node;
}

function bytes(count) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (count < 1000 || unit === "GB") return `${count.toFixed(unit === "B" || unit === "KB" ? 0 : 1)} ${unit}`;
    count /= 1000;
  }
}

function lasting(ms) {
  const s = Math.max(0, Math.floor(ms / 1000)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

// Replaces what `holder` holds only where it differs, so that nothing under the pointer or the focus is taken away.
function fill(holder, key, make) {
  const text = JSON.stringify(key);
  if (holder.dataset.key !== text) {
    holder.dataset.key = text;
    holder.replaceChildren(...make());
  }
}

// Text that is still to come is given to the clipboard as a promise: a browser allows a copy for a moment after a click alone.
async function toClipboard(coming) {
  if (navigator.clipboard && window.ClipboardItem && navigator.clipboard.write) {
    try {
      const blob = coming.then(text => new Blob([text], { type: "text/plain" }));
      await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })]);
      return true;
    } catch { /* this browser takes no promise, or the page may not: the ways below are left */ }
  }
  const text = await coming;
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { return false; }
}

class Kernel {
  // Asks the kernel, and hands each answer to who asked.
  constructor(model) {
    this.model = model;
    this.me = Math.random().toString(36).slice(2);
    this.count = 0;
    this.waiting = new Map();
    this.onMessage = message => {
      if (message.type !== "did" || message.for !== this.me) return;
      const asked = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (asked && "wrong" in message) asked.reject(new Error(message.wrong));
      else if (asked) asked.resolve(message.said);
    };
    model.on("msg:custom", this.onMessage);
  }
  ask(what, given = {}) {
    return new Promise((resolve, reject) => {
      const id = ++this.count;
      this.waiting.set(id, { resolve, reject, since: Date.now() });
      this.model.send({ type: "do", what, arguments: given, id, for: this.me });
    });
  }
  giveUp() {
    for (const asked of this.waiting.values()) asked.reject(new Error("the kernel is gone"));
    this.waiting.clear();
  }
  longest() {
    return Math.max(0, ...[...this.waiting.values()].map(each => Date.now() - each.since));
  }
  hello() { this.model.send({ type: "hello", for: this.me }); }
  close() { this.model.off("msg:custom", this.onMessage); }
}

function render({ model, el }) {
  const kernel = new Kernel(model), root = element("section", "avocado-card");
  const head = element("div", "head"), steps = element("ol", "steps"), fields = element("div", "fields");
  const chips = element("ul", "chips"), unused = element("div", "quiet"), problems = element("div", "problems");
  const happened = element("ul", "events"), drawers = element("div", "drawers"), foot = element("div", "quiet");
  const result = element("div", "result"), spoken = element("span", "spoken"), hider = element("style");
  root.setAttribute("role", "region");
  problems.setAttribute("role", "alert");
  result.setAttribute("role", "status");
  spoken.setAttribute("aria-live", "polite");
  root.append(hider, spoken, head, steps, fields, chips, unused, problems, happened, drawers, result, foot);
  el.append(root);
  // Until the kernel has said something this may be a card of a notebook that was saved: then the static line speaks.
  const firstBeat = model.get("beat");
  let lastBeat = Date.now(), alive = false, key = null, ticker = null, greeter = null;
  const service = () => model.get("service") || {};
  const gone = () => !service().over && Date.now() - lastBeat > BEAT_LIMIT_MS;

  function say(text, wrong = false) {
    result.textContent = text;
    result.classList.toggle("wrong", wrong);
  }
  // Runs one action of the kernel's, with its button held meanwhile.
  async function act(node, what, given = {}) {
    node.disabled = true;
    try {
      const said = await kernel.ask(what, given);
      say(String(said));
      return said;
    } catch (error) {
      say(error.message, true);
    } finally {
      node.disabled = false;
    }
  }
  // A second click, on the button's own question, does what cannot be taken back.
  function asking(label, question, title, onYes) {
    const node = button(label, title, () => {
      if (node.textContent === question) { restore(); onYes(node); return; }
      node.textContent = question;
      node.setAttribute("aria-label", question);
      node.classList.add("sure");
      timer = setTimeout(restore, 5000);
    });
    let timer = null;
    function restore() {
      clearTimeout(timer);
      node.textContent = label;
      node.setAttribute("aria-label", title);
      node.classList.remove("sure");
    }
    return node;
  }
  async function copy(node, coming, field) {
    const label = node.dataset.label = node.dataset.label || node.textContent;
    let told;
    try {
      told = await toClipboard(coming) ? "copied" : null;
      if (told === null) {
        const text = await coming;
        const shown = field || element("textarea", "shown");
        if (!field) { shown.readOnly = true; node.after(shown); shown.setAttribute("aria-label", "text to copy"); }
        const before = shown.type;
        if (field) shown.type = "text";
        shown.value = text;
        shown.select();
        // What was shown to be copied goes again when it is left.
        shown.addEventListener("blur", () => {
          if (!field) shown.remove();
          else if (before === "password") { shown.type = before; shown.value = ""; }
        }, { once: true });
        told = document.execCommand && document.execCommand("copy") ? "copied" : "press Ctrl+C";
        if (told === "copied") shown.blur();
      }
    } catch (error) {
      say(error.message, true);
      return;
    }
    node.textContent = told;
    setTimeout(() => { node.textContent = label; }, 2000);
  }

  // URL and key
  function field(label, hidden) {
    const row = element("div", "field"), input = element("input");
    input.readOnly = true;
    input.type = hidden ? "password" : "text";
    input.setAttribute("aria-label", label);
    row.append(element("span", "label", label), input);
    return { row, input };
  }
  const url = field("URL"), secret = field("key", true);
  url.row.append(button("copy", "copy the URL", node => copy(node, Promise.resolve(url.input.value), url.input)));
  secret.input.placeholder = "hidden";
  const reveal = button("show", "show the key", async node => {
    if (key !== null) { hide(); return; }
    try {
      key = await kernel.ask("key");
    } catch (error) { say(error.message, true); return; }
    secret.input.type = "text";
    secret.input.value = key;
    node.textContent = "hide";
    node.setAttribute("aria-label", "hide the key");
  });
  function hide() {
    key = null;
    secret.input.value = "";
    secret.input.type = "password";
    reveal.textContent = "show";
    reveal.setAttribute("aria-label", "show the key");
  }
  secret.row.append(
    button("copy", "copy the key, without showing it", node => copy(node, kernel.ask("key"), key === null ? null : secret.input)),
    reveal,
    asking("rotate", "replace the key?", "replace the key by another", async node => {
      hide();
      await act(node, "rotate_key");
    }),
  );
  fields.append(url.row, secret.row);

  // what opens
  function drawer(name, build, poll) {
    const box = element("details"), body = element("div", "body");
    let timer = null;
    box.append(element("summary", "", name), body);
    box.addEventListener("toggle", () => {
      clearInterval(timer);
      timer = null;
      if (!box.open) return;
      look();
      if (poll) timer = setInterval(look, poll);
    });
    // One question at a time, and none that nobody hears.
    async function look() {
      if (body.asking || gone() || !service().serving) return;
      body.asking = true;
      try { await build(body); } finally { body.asking = false; }
    }
    box.stop = () => clearInterval(timer);
    return box;
  }
  async function models(body) {
    if (!body.list) {
      body.list = element("ul", "plain");
      const name = element("input"), go = button("pull", "look up a model's size, then fetch it", async node => {
        const wanted = name.value.trim();
        if (!wanted) { say("write the name of a model first", true); return; }
        if (node.dataset.sure !== wanted) {
          if (await act(node, "size", { model: wanted }) === undefined) return;
          node.dataset.sure = wanted;
          node.textContent = `pull ${wanted}`;
          return;
        }
        delete node.dataset.sure;
        node.textContent = "pull";
        if (await act(node, "pull", { model: wanted }) !== undefined) { name.value = ""; models(body); }
      });
      name.placeholder = "llama3.2:3b";
      name.setAttribute("aria-label", "model to pull");
      name.addEventListener("input", () => { delete go.dataset.sure; go.textContent = "pull"; });
      const row = element("div", "field");
      row.append(name, go);
      body.append(body.list, row);
    }
    let found;
    try {
      found = await kernel.ask("models");
    } catch (error) { say(error.message, true); return; }
    fill(body.list, found, () => found.map(each => {
      const item = element("li");
      const [label, what, title] = each.loaded
        ? ["unload", "unload", `take ${each.name} out of memory`] : ["load", "load", `bring ${each.name} into memory`];
      item.append(element("b", "", each.name), ` ${each.said} `, button(label, title, async node => {
        await act(node, what, { model: each.name });
        models(body);
      }));
      return item;
    }));
  }
  async function usage(body) {
    let rows;
    try {
      rows = await kernel.ask("usage");
    } catch (error) { say(error.message, true); return; }
    fill(body, rows, () => {
      if (!rows.length) return [element("p", "", "Nobody has used it today (UTC).")];
      const table = element("table"), top = element("tr");
      for (const name of ["key", "requests today", "tokens today"]) {
        const cell = element("th", "", name);
        cell.scope = "col";
        top.append(cell);
      }
      table.append(top, ...rows.map(each => {
        const row = element("tr");
        row.append(...[each.key, each.requests, each.tokens].map(value => element("td", "", String(value))));
        return row;
      }));
      return [table];
    });
  }
  async function logs(body) {
    if (!body.pick) {
      body.pick = element("select");
      body.pick.setAttribute("aria-label", "whose log");
      body.pick.append(...LOGS.map(name => element("option", "", name)));
      body.text = element("pre");
      body.text.tabIndex = 0;
      body.text.setAttribute("aria-label", "the last lines of the log");
      body.pick.addEventListener("change", () => logs(body));
      body.append(body.pick, body.text);
    }
    try {
      const lines = await kernel.ask("logs", { part: body.pick.value });
      const text = lines.length ? lines.join("\n") : "it is empty";
      const below = body.text.scrollHeight - body.text.scrollTop - body.text.clientHeight < 40;
      if (body.text.textContent !== text) {
        body.text.textContent = text;
        if (below) body.text.scrollTop = body.text.scrollHeight;
      }
    } catch (error) {
      say(error.message, true);
    }
  }
  async function snippets(body) {
    if (body.childElementCount) return;
    let all;
    try {
      all = await kernel.ask("snippets");
    } catch (error) { say(error.message, true); return; }
    const pick = element("select"), text = element("pre");
    pick.setAttribute("aria-label", "for which client");
    pick.append(...Object.keys(all).map(name => element("option", "", name)));
    text.tabIndex = 0;
    text.setAttribute("aria-label", "the snippet, URL and key still to be filled in");
    const show = () => { text.textContent = all[pick.value]; };
    pick.addEventListener("change", show);
    body.append(pick, button("copy with URL and key", "copy the snippet with URL and key filled in",
      node => copy(node, kernel.ask("snippet", { kind: pick.value }))), text);
    show();
  }
  const doing = element("div", "actions");
  const announcing = button("announce again", "publish the URL once more", node => act(node, "announce"));
  doing.append(
    announcing,
    button("keep", "let it live on without a notebook", node => act(node, "keep")),
    ...["engine", "gateway", "tunnel"].map(part => {
      const node = button(`restart ${part}`, `restart the ${part}`, each => act(each, "restart", { part }));
      node.dataset.part = part;
      return node;
    }),
    asking("stop", "stop it all?", "stop the service and all it started", node => act(node, "stop")),
  );
  const opened = [drawer("models", models), drawer("who uses it", usage, 5000), drawer("logs", logs, LOG_MS), drawer("connect", snippets)];
  drawers.append(doing, ...opened);

  function draw() {
    const now = service(), folded = model.get("folded");
    // Where another card stands further down, the line above this one says so.
    root.hidden = !alive || folded;
    root.classList.toggle("folded", folded);
    // As long as this card stands on the page, the static line above it has nothing to say.
    hider.textContent = root.hidden ? "" : `.avocado-static[data-service=${JSON.stringify(`${now.card || ""} ${now.name || ""}`)}] { display: none }
      .avocado-copy { display: inline !important; font: 11px system-ui, sans-serif; cursor: pointer }`;
    root.setAttribute("aria-label", `Avocado service ${now.name || ""}`);
    if (folded) { stop(); return; }
    fill(head, [now.name, now.state, now.engine, now.model, now.mood], () => {
      const state = element("span", "state");
      state.append(mark(now.mood), " ", element("span", "word", now.state));
      const about = [now.engine, now.model].filter(Boolean).join(" · ");
      return [state, element("b", "", `avocado ${now.name || ""}`), element("span", "about", about), element("span", "time")];
    });
    if (spoken.textContent !== now.state) spoken.textContent = now.state || "";
    steps.hidden = !(now.steps || []).length;
    fill(steps, now.steps, () => (now.steps || []).map(step => {
      const item = element("li", step.doing.replace(" ", "-")), moved = step.progress;
      item.append(element("b", "", step.name), ` ${step.said || step.doing}`);
      if (moved) {
        const bar = element("progress"), rate = moved.rate;
        bar.max = moved.total;
        bar.value = moved.done;
        bar.setAttribute("aria-label", `${step.name}: bytes that have come`);
        const left = rate ? `, ${bytes(rate)}/s, ${lasting(1000 * (moved.total - moved.done) / rate)} left` : "";
        item.append(bar, ` ${bytes(moved.done)} of ${bytes(moved.total)}${left}`);
      }
      return item;
    }));
    if (now.starting && !steps.cancel) {
      steps.cancel = asking("cancel", "stop starting?", "stop what is being started", node => act(node, "stop"));
      steps.after(steps.cancel);
    }
    if (steps.cancel) steps.cancel.hidden = !now.starting;
    fields.hidden = !now.serving;
    url.input.value = now.url || now.local_url || "";
    if (!now.serving && key !== null) hide();
    chips.hidden = now.over || now.starting;
    fill(chips, [now.chips, now.over], () => (now.chips || []).map(chip => {
      const item = element("li", "chip");
      item.dataset.part = chip.part;
      item.title = chip.state;
      item.append(mark(chip.mood), element("b", "", ` ${chip.name} `), element("span", "", chip.said));
      return item;
    }));
    const idle = now.starting ? [] : now.unused || [];
    unused.textContent = idle.length ? `not used: ${idle.map(name => (name === "announcer" ? "discovery" : name)).join(", ")}` : "";
    fill(problems, now.problems, () => (now.problems || []).map(text => element("div", "", text)));
    fill(happened, now.events, () => (now.events || []).map(each => {
      const item = element("li"), at = element("time", "", new Date(each.at).toLocaleTimeString());
      at.dateTime = each.at;
      item.append(at, ` ${each.said}`);
      return item;
    }));
    drawers.hidden = !now.serving;
    for (const node of doing.children) {
      const part = node.dataset.part;
      if (part) node.hidden = !(now.restartable || []).includes(part);
    }
    announcing.hidden = (now.unused || []).includes("announcer");
    tick();
  }

  function tick() {
    const now = service(), over = now.over;
    if (model.get("folded")) return;
    const dead = gone();
    root.classList.toggle("gone", dead);
    for (const node of root.querySelectorAll("button")) {
      if (dead !== (node.dataset.dead === "1")) { node.disabled = dead; node.dataset.dead = dead ? "1" : ""; }
    }
    if (dead) kernel.giveUp();
    const time = head.querySelector(".time"), word = head.querySelector(".word");
    if (word) word.textContent = dead ? `was ${now.state}` : now.state;
    if (time && !over && now.started_at) time.textContent = `${now.starting ? "for" : "up"} ${lasting(Date.now() - Date.parse(now.started_at))}`;
    const notes = [];
    if (dead) {
      notes.push(`no sign of life from the kernel, so this may be out of date: where it was restarted, run %load_ext avocado_magic and %avocado_status`);
    }
    if (!over && now.announced_at) notes.push(`announced ${lasting(Date.now() - Date.parse(now.announced_at))} ago`);
    if (!over && now.ends_at) notes.push(`ends in ${lasting(Date.parse(now.ends_at) - Date.now())}`);
    if (over) notes.push(`%avocado_up starts it again`);
    if (kernel.longest() > WAIT_MS) {
      notes.push(model.get("busy") ? "waiting for the running cell (the notebook's stop button ends it)" : "the kernel is at it");
    }
    foot.textContent = [...notes, ...(now.notices || [])].join(" · ");
  }

  // What was saved is set as well where a page is restored: only a beat that is new comes from a kernel, or an answer.
  function changed() { heard(model.get("beat") > firstBeat); }
  function answered() { heard(true); }
  function heard(proof) {
    alive = alive || proof;
    if (alive) lastBeat = Date.now();
    draw();
  }
  model.on("change:service", changed);
  model.on("change:beat", changed);
  model.on("change:busy", changed);
  model.on("msg:custom", answered);
  model.on("change:folded", draw);
  // The button beside an answer of %%ollama, which has no script of its own.
  async function onClick(event) {
    const node = event.target.closest ? event.target.closest(".avocado-copy") : null;
    if (!node || event.defaultPrevented) return;
    event.preventDefault();
    node.textContent = await toClipboard(Promise.resolve(node.dataset.text)) ? "copied" : "press Ctrl+C on the text";
    setTimeout(() => { node.textContent = "copy"; }, 2000);
  }
  document.addEventListener("click", onClick);
  ticker = setInterval(tick, 1000);
  greeter = setInterval(() => kernel.hello(), HELLO_MS);
  kernel.hello();
  draw();
  function stop() {
    clearInterval(ticker);
    clearInterval(greeter);
    opened.forEach(each => each.stop());
  }
  return () => {
    stop();
    document.removeEventListener("click", onClick);
    kernel.close();
    model.off("change:service", changed);
    model.off("change:beat", changed);
    model.off("change:busy", changed);
    model.off("msg:custom", answered);
    model.off("change:folded", draw);
  };
}

export default { render };
