// The page: a history that one clicks together, what is recommended for it, and where both lie in the tree of codes.

const byId = (id) => document.getElementById(id);
const history = []; // items as the server describes them, newest last
let shown = []; // recommended items, best first
let weights = null; // hash of the model that the page was opened with
let asked = new AbortController(); // the newest question for recommendations

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

async function ask(path, body, signal) {
  const posted = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { ...posted, signal });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

// Do something that may fail, and say so; an answer that nobody waits for any more is no failure.
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function later(milliseconds, work) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => attempt(work), milliseconds);
  };
}

// ---- Patterns: a shape and a colour for each shared prefix, so that neither alone tells them apart. -----------------

const SHAPES = [
  "M0 0H8V8H0Z", "M0 8L8 0M-2 2L2 -2M6 10L10 6", "M2 0V8M6 0V8", "M2 2h2v2h-2zM6 6h2v2h-2z", "M0 2H8M0 6H8",
  "M0 0L8 8M-2 6L2 10M6 -2L10 2", "M0 4H8M4 0V8", "M0 0H4V4H0ZM4 4H8V8H4Z",
];

function drawPatterns() {
  SHAPES.forEach((shape, number) => {
    const look = { d: shape, stroke: `var(--c${number})`, "stroke-width": 2, fill: `var(--c${number})` };
    const size = { id: `p${number}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" };
    byId("patterns").append(draw("pattern", size, draw("path", look)));
  });
}

const prefix = (item, level) => item.semantic_id.slice(0, level + 1).join(" ");
const everything = () => [...new Map([...history, ...shown].map((item) => [item.item, item])).values()];

// The number of the pattern of every prefix that two or more of the shown items share.
function sharedPrefixes() {
  const counts = new Map();
  for (const item of [...shown, ...history.filter((item) => !shown.some((other) => other.item === item.item))]) {
    item.semantic_id.forEach((_, level) => {
      const key = prefix(item, level);
      counts.set(key, (counts.get(key) || 0) + 1);
    });
  }
  const keys = [...counts.keys()].filter((key) => counts.get(key) > 1);
  return new Map(keys.map((key, number) => [key, number % SHAPES.length]));
}

// ---- Lists -----------------------------------------------------------------------------------------------------------

// A semantic ID as one cell per level: cells of a prefix that others share are joined, with a strip in its pattern.
function drawId(item, shared) {
  const [width, height] = [38, 22];
  const depth = item.semantic_id.findIndex((_, level) => !shared.has(prefix(item, level)));
  const common = depth < 0 ? item.semantic_id.length : depth;
  const label = `semantic ID ${item.semantic_id.join(" ")}` + (common ? `, its first ${common} also in other items shown` : "");
  const size = { width: width * item.semantic_id.length + 1, height: height + 1, role: "img", "aria-label": label };
  return draw("svg", size, ...item.semantic_id.flatMap((code, level) => {
    const key = prefix(item, level), x = level * width + 0.5;
    const inner = shared.has(key) ? width : width - 4, first = shared.has(key) ? x : x + 2;
    const cell = draw("rect", { x: first, y: 0.5, width: inner, height, class: shared.has(key) ? "cell" : "cell alone" });
    const text = draw("text", { x: x + width / 2, y: shared.has(key) ? 12.5 : 16, "text-anchor": "middle" }, `${code}`);
    const strip = { x: first, y: height - 6, width: inner, height: 6, fill: `url(#p${shared.get(key)})` };
    return shared.has(key) ? [cell, draw("rect", strip), text] : [cell, text];
  }));
}

function row(item, number, shared, button) {
  const score = item.score === null ? [] : [make("span", { title: "mean log-probability per level" }, `score ${item.score.toFixed(3)}`)];
  const facts = make("div", { className: "facts" }, drawId(item, shared), make("span", {}, item.item), ...score);
  const text = make("div", { className: "text" }, item.text, facts);
  return make("li", { className: "item" }, make("span", { className: "rank" }, `${number}`), text, button);
}

function render() {
  const shared = sharedPrefixes(), focused = focusedRow();
  byId("history").replaceChildren(...history.map((item, index) => {
    const remove = make("button", { type: "button", ariaLabel: `Remove ${item.text}` }, "✕");
    remove.onclick = () => { history.splice(index, 1); changed(); };
    return row(item, index + 1, shared, remove);
  }));
  byId("recommended").replaceChildren(...shown.map((item, index) => {
    const add = make("button", { type: "button", ariaLabel: `Add to the history: ${item.text}` }, "+");
    add.onclick = () => { history.push(item); changed(); };
    return row(item, index + 1, shared, add);
  }));
  byId("count").textContent = history.length ? `${history.length}, newest last` : "";
  byId("empty").hidden = history.length > 0;
  byId("clear").hidden = history.length === 0;
  if (focused) focusRow(...focused);
  drawTree(shared);
}

// The list and the place of the row whose button has the keyboard, if one has.
function focusedRow() {
  const rows = ["history", "recommended"].map((list) => [list, [...byId(list).querySelectorAll("button")].indexOf(document.activeElement)]);
  return rows.find(([, index]) => index >= 0);
}

// Give the keyboard to that row; where it went to the one that took its place, the last one, or the search.
function focusRow(list, index) {
  const buttons = byId(list).querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] || byId("query")).focus();
}

async function changed() {
  render();
  asked.abort();
  const { signal } = asked = new AbortController();
  await attempt(async () => {
    const wanted = { items: history.map((item) => item.item), k: Number(byId("k").value), exclude_seen: !byId("seen").checked };
    const { results: [answer], model } = await ask("recommend", wanted, signal);
    if (weights && model !== weights) return say("The model was replaced. Load the page again.", true);
    shown = answer.items;
    render();
    const what = answer.source === "model" ? `for ${history.length} item${history.length > 1 ? "s" : ""}` : "by popularity";
    say([`${shown.length} recommendation${shown.length === 1 ? "" : "s"} ${what}.`, ...answer.notes.map((note) => `${note[0].toUpperCase()}${note.slice(1)}.`)].join(" "));
  });
}

// ---- The tree ----------------------------------------------------------------------------------------------------------

// The prefix tree of the shown items as an icicle: a column per level, a row per item.
function drawTree(shared) {
  const items = everything().sort((a, b) => {
    const level = a.semantic_id.findIndex((code, place) => code !== b.semantic_id[place]);
    return a.semantic_id[level] - b.semantic_id[level];
  });
  const levels = items.length ? items[0].semantic_id.length : 0, height = 26;
  const space = byId("tree").clientWidth, width = Math.max(40, Math.min(110, (space * 0.55) / levels));
  const figure = draw("svg", { width: space, height: items.length * height + 2, role: "img", "aria-labelledby": "tree-title summary" });
  for (let level = 0; level < levels; level++) {
    for (let first = 0, last; first < items.length; first = last) {
      const key = prefix(items[first], level);
      for (last = first; last < items.length && prefix(items[last], level) === key; last++);
      figure.append(...drawNode(items[first], level, first, last - first, width, height, shared.get(key)));
    }
  }
  const letters = Math.floor((space - levels * width - 58) / 6.3);
  items.forEach((item, number) => figure.append(...drawLeaf(item, levels * width + 8, number * height, height, letters)));
  byId("tree").replaceChildren(figure);
  summarize();
}

// A box over `count` rows from row `first` on; `pattern` where other items share it.
function drawNode(item, level, first, count, width, height, pattern) {
  const [x, y, tall] = [level * width + 1, first * height + 1, count * height - 2];
  const total = item.sharing[level], code = `${item.semantic_id[level]}`, beside = width >= 90 && total > 1;
  const box = draw("rect", { x, y, width: width - 2, height: tall, class: pattern === undefined ? "cell alone" : "cell" });
  box.append(draw("title", {}, `${prefix(item, level)}: ${count} of ${total}`));
  const strip = pattern === undefined ? [] : [draw("rect", { x, y, width: 8, height: tall, fill: `url(#p${pattern})` })];
  const middle = y + tall / 2 + 4, below = !beside && count > 1;
  const text = draw("text", { x: x + 13, y: below ? middle - 7 : middle }, code);
  const note = beside ? { x: x + 40, y: middle } : { x: x + 10, y: middle + 8 };
  const said = draw("text", { ...note, class: "soft" }, beside ? `${count} of ${total}` : `${count}/${total}`);
  return [box, ...strip, text, ...(beside || below ? [said] : [])];
}

// What an item is: a filled circle with its rank where it is recommended, a square where it is in the history.
function drawLeaf(item, x, y, height, letters) {
  const rank = shown.findIndex((other) => other.item === item.item) + 1, had = history.some((other) => other.item === item.item);
  const middle = y + height / 2, parts = [];
  const text = item.text.length > letters ? `${item.text.slice(0, letters).trim()}…` : item.text;
  if (rank) {
    parts.push(draw("circle", { cx: x + 10, cy: middle, r: 10, class: "mark new" }));
    parts.push(draw("text", { x: x + 10, y: middle + 3.5, "text-anchor": "middle", class: "number" }, `${rank}`));
  }
  if (had) parts.push(draw("rect", { x: x + (rank ? 24 : 2), y: middle - 8, width: 16, height: 16, class: "mark" }));
  return [...parts, draw("text", { x: x + (rank && had ? 46 : 26), y: middle + 4 }, text)];
}

function summarize() {
  const firsts = (items) => new Set(items.map((item) => item.semantic_id[0]));
  const had = firsts(history), near = shown.filter((item) => had.has(item.semantic_id[0])).length;
  const beside = history.length ? `; ${near} of them begin as an item of the history does` : "";
  const all = `The ${shown.length} recommended items begin with ${firsts(shown).size} different codes${beside}.`;
  byId("summary").textContent = shown.length ? `● with its rank: recommended. □: in the history. ${all}` : "";
}

// ---- Finding -----------------------------------------------------------------------------------------------------------

const find = later(150, async () => {
  const { items } = await ask(`items?limit=30&query=${encodeURIComponent(byId("query").value)}`);
  byId("found").replaceChildren(...items.map((item) => {
    const button = make("button", { type: "button" }, `${item.text} (${item.item})`);
    button.onclick = () => { history.push(item); changed(); };
    return make("li", {}, button);
  }));
  if (!items.length) byId("found").append(make("li", {}, "No item has all of these words."));
});

// The arrow keys walk from the field through the list and back; Enter in the field adds the first item.
function walk(event) {
  const buttons = [...byId("found").querySelectorAll("button")], place = buttons.indexOf(document.activeElement);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Escape: -1 }[event.key];
  if (event.key === "Enter" && place < 0) buttons[0]?.click();
  if (next === undefined) return;
  (next < 0 ? byId("query") : buttons[Math.min(next, buttons.length - 1)])?.focus();
  event.preventDefault();
}

const findUsers = later(150, async () => {
  const { users } = await ask(`users?limit=20&query=${encodeURIComponent(byId("user").value)}`);
  byId("names").replaceChildren(...users.map((value) => make("option", { value })));
});

async function takeUser(event) {
  event.preventDefault();
  await attempt(async () => {
    const { items } = await ask(`history?user=${encodeURIComponent(byId("user").value.trim())}`);
    history.splice(0, history.length, ...items);
    await changed();
  });
}

// Let no more items be asked for than the server allows; where none of the options is allowed, offer what is.
function limitCounts(most) {
  const select = byId("k"), allowed = [...select.options].filter((option) => Number(option.value) <= most);
  for (const option of select.options) option.disabled = !allowed.includes(option);
  if (!allowed.length) select.prepend(allowed[0] = new Option(most));
  if (select.selectedOptions[0].disabled) allowed.at(-1).selected = true;
}

async function start() {
  drawPatterns();
  byId("query").oninput = find;
  byId("query").onkeydown = byId("found").onkeydown = walk;
  byId("user").oninput = findUsers;
  byId("users").onsubmit = takeUser;
  byId("k").onchange = byId("seen").onchange = changed;
  byId("clear").onclick = () => { history.length = 0; changed(); byId("query").focus(); };
  window.onresize = later(100, render);
  const about = await ask("model");
  weights = about.sha256.weights.slice(0, 12);
  const test = Object.entries(about.metrics.test || {}).map(([name, value]) => `${name} ${value.toFixed(4)}`);
  const tokenizer = `${about.tokenizer.prefix}${about.tokenizer.epoch ? `, epoch ${about.tokenizer.epoch}` : ""}`;
  const facts = [about.name, `${about.dataset}: ${about.items.toLocaleString("en")} items`, `tokenizer ${tokenizer}`];
  byId("about").textContent = [...facts, ...(test.length ? [`test ${test.join(", ")}`] : [])].join(" · ");
  byId("users").hidden = about.users === 0;
  limitCounts(about.limits.max_k);
  find();
  findUsers();
  await changed();
}

attempt(start);
