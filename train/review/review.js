// The review page. Everything that comes from a request or a label is put in with textContent, never as markup.
"use strict";

const SHOWN = 20000; // characters of a request, before its whole is asked for
const secret = location.pathname.split("/")[1];
const at = (name) => document.getElementById(name);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

let task, state, item, questions = [], current = 0, busy = false, again = false;
let started = Date.now(), saved = 0;
const ahead = new Map(); // id → promise of the request: the next ones are there before they are needed
const tables = { answers: new Map(), texts: new Map() };

// JSON as it is written: JavaScript would round 2⁵³ + 1 and write 1.0 as 1, and its objects all have a `constructor`.
function parse(text) {
  return JSON.parse(text, (key, value, { source }) => {
    if (typeof value === "number") return String(value) === source ? value : JSON.rawJSON(source);
    return value && typeof value === "object" && !Array.isArray(value) ? Object.setPrototypeOf(value, null) : value;
  });
}

async function call(path, content) {
  const options = content && {
    method: "POST",
    headers: { "content-type": "application/json", "x-review-secret": secret },
    body: JSON.stringify(content),
  };
  let response;
  try {
    response = await fetch("api/" + path, options || {});
  } catch {
    throw new Error("The server is not reachable: nothing was saved. Start batch-train review again, then reload this page.");
  }
  const body = parse(await response.text());
  if (!response.ok) throw Object.assign(new Error(body.error), { status: response.status });
  return body;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Control characters are shown as their pictures; what overrides a line's direction, has no width or is a tag by its
// number: a model reads it, and a person must see that it is there. Joiners, marks of direction and selectors are writing.
function visible(text) {
  const pictures = text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => String.fromCharCode(c === "\u007f" ? 0x2421 : 0x2400 + c.charCodeAt(0)));
  return pictures.replace(/[\u0080-\u009f\u00ad\u200b\u2028-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e00ff}\u{e01f0}-\u{e0fff}]/gu, (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase()}]`);
}

const shown = (value) => (Array.isArray(value) ? value.map(shown).join(", ") || "none of these" : value === null ? "none of these" : typeof value === "boolean" ? (value ? "yes" : "no") : String(value?.rawJSON ?? value));
const keyOf = (facts) => JSON.stringify(Object.keys(task.facts).map((name) => facts[name]));
const byFacts = () => task.table && task.table.length > 0;

// What the policy table makes of the facts: nothing before all are given, else the fields that it decides.
const decided = () => (byFacts() ? tables.answers.get(keyOf(item.given)) : Object.create(null));

// The facts, and the fields that the table leaves open.
function asked() {
  const facts = byFacts() ? Object.entries(task.facts).map(([name, values]) => ({ name, fact: true, meaning: "", values: values.map((value) => ({ value, meaning: "" })) })) : [];
  const none = { value: [], meaning: "" };
  const fields = task.fields.filter((field) => !field.text && decided() && !(field.name in decided()));
  return [...facts, ...fields.map((field) => (field.many && field.optional ? { ...field, values: [...field.values, none] } : field))];
}

function ask() {
  questions = asked();
  at("questions").replaceChildren(...questions.map(question));
}

// A fact and a field may have one name.
const answersOf = (q) => (q.fact ? item.given : item.chosen);
const answered = (q) => q.name in answersOf(q);

// Whether a question's answer holds a value: it is it, or of several one.
const holds = (q, value) => answered(q) && (q.many && !Array.isArray(value) ? answersOf(q)[q.name].includes(value) : same(answersOf(q)[q.name], value));

// The entries of `proposed` that have these names.
const among = (names, proposed) => Object.setPrototypeOf(Object.fromEntries(names.filter((name) => proposed && name in proposed).map((name) => [name, proposed[name]])), null);

function show() {
  const labelled = item.decision?.decision === "label" && item.decision;
  item.given = among(Object.keys(task.facts), labelled.facts || item.facts);
  item.chosen = among(task.fields.filter((field) => !field.text).map((field) => field.name), labelled || item.answer);
  at("id").textContent = item.id;
  const text = visible(item.request);
  at("request").textContent = text.slice(0, SHOWN);
  at("request").scrollTop = 0;
  at("whole").hidden = text.length <= SHOWN;
  at("whole").textContent = `Show all ${text.length.toLocaleString("en")} characters`;
  at("whole").onclick = () => { at("request").textContent = text; at("whole").hidden = true; };
  at("why").replaceChildren(...item.why.map((reason) => element("li", { textContent: visible(reason) })));
  ask();
  at("texts").replaceChildren(...task.fields.filter((field) => field.text).map(textField));
  at("note").value = item.decision?.note || "";
  at("undo").disabled = !state.last;
  const open = questions.findIndex((q) => !answered(q));
  outcome();
  noting(false);
  focus(open < 0 ? 0 : open);
}

function question(q, number) {
  const long = q.values.some((each) => each.meaning);
  const choices = q.values.map((each, index) => {
    const input = element("input", { type: q.many ? "checkbox" : "radio", name: "q" + number, checked: holds(q, each.value) });
    input.onchange = () => choose(number, index);
    input.onfocus = () => mark(number);
    const words = element("span", { className: "name" }, visible(shown(each.value)));
    if (each.meaning) words.append(element("span", { className: "meaning", textContent: each.meaning }));
    const choice = element("label", { className: "choice" }, input, element("kbd", { textContent: String(index + 1), ariaHidden: "true" }), words);
    const told = item.answer[q.name];
    if (!q.fact && q.name in item.answer && (q.many && !Array.isArray(each.value) ? told.includes(each.value) : same(told, each.value))) {
      choice.append(element("span", { className: "model", textContent: `model, ${percent(item.scores[q.name])}` }));
    }
    const second = item.seconds[q.name];
    if (!q.fact && second && same(second[0], each.value)) {
      choice.append(element("span", { className: "model", textContent: `second, ${percent(second[1])}` }));
    }
    return choice;
  });
  const legend = element("legend", {}, q.name.replaceAll("_", " ") + (q.meaning ? " " : ""));
  if (q.meaning) legend.append(element("span", { textContent: q.meaning }));
  return element("fieldset", { className: long ? "" : "short" }, legend, element("div", { className: long ? "choices long" : "choices" }, ...choices));
}

function percent(score) {
  if (score === undefined || score === null) return "no score";
  const number = Number(score.rawJSON ?? score);
  return (100 * number).toFixed(number > 0.995 ? 1 : 0) + " %";
}

// The probability of the model's value, and what it held for the next likeliest.
function odds(name) {
  const second = item.seconds[name];
  return percent(item.scores[name]) + (second ? `; second: ${visible(shown(second[0]))}, ${percent(second[1])}` : "");
}

function textField(field) {
  const area = element("textarea", { rows: 2, name: field.name });
  area.value = item.decision?.[field.name] || "";
  area.oninput = () => { area.dataset.own = "yes"; };
  if (area.value) area.dataset.own = "yes";
  return element("label", { className: "text" }, field.name.replaceAll("_", " "), area);
}

// What the policy table makes of the facts, beside what the model said; and the texts that fit.
function outcome() {
  const answer = answerNow();
  const table = decided();
  at("save").disabled = !answer;
  at("outcome").replaceChildren();
  if (byFacts() && (table || Object.keys(item.answer).length)) {
    const fields = task.fields.filter((field) => !field.text && (!table || field.name in table));
    at("outcome").append(element("dl", {}, ...fields.flatMap((field) => result(field, table))));
  }
  for (const area of at("texts").querySelectorAll("textarea")) {
    if (area.dataset.own) continue;
    const agrees = answer && task.fields.every((f) => f.text || same(answer[f.name], item.answer[f.name]));
    const usual = byFacts() && answer ? tables.texts.get(keyOf(item.given))?.[area.name] : undefined;
    area.value = ((agrees || !byFacts()) && item.answer[area.name]) || usual || "";
  }
}

// A field's value by the facts, once they are given, and the model's beside it with its probability.
function result(field, answer) {
  const told = field.name in item.answer;
  const model = told ? `${visible(shown(item.answer[field.name]))}, ${odds(field.name)}` : "";
  const term = element("dt", { textContent: field.name.replaceAll("_", " ") });
  if (!answer) return [term, element("dd", { className: "quiet", textContent: "model: " + model })];
  const differs = told && !same(item.answer[field.name], answer[field.name]);
  const value = element("dd", {}, element("strong", { textContent: visible(shown(answer[field.name])) }));
  if (told) value.append(" ", element("span", { className: differs ? "differs" : "quiet", textContent: differs ? "model: " + model : `as the model, ${odds(field.name)}` }));
  const meaning = field.values.find((each) => same(each.value, answer[field.name]))?.meaning;
  if (meaning) value.append(element("small", { className: "quiet", textContent: meaning }));
  return [term, value];
}

function answerNow() {
  return decided() && questions.every(answered) ? { ...item.chosen, ...decided() } : null;
}

function choose(number, index) {
  const q = questions[number];
  if (!q.values[index]) return;
  const value = q.values[index].value;
  if (q.many && !Array.isArray(value)) {
    const before = item.chosen[q.name] || [];
    const after = q.values.map((each) => each.value).filter((each) => (each === value) !== before.includes(each) && !Array.isArray(each));
    item.chosen[q.name] = after;
    if (!after.length && !q.optional) delete item.chosen[q.name];
  } else {
    answersOf(q)[q.name] = value;
  }
  if (q.fact && !same(asked(), questions)) ask();
  at("questions").children[number].querySelectorAll("input").forEach((input, i) => { input.checked = holds(q, q.values[i].value); });
  outcome();
  focus(q.many ? number : Math.min(number + 1, questions.length - 1));
}

function mark(number) {
  current = number;
  [...at("questions").children].forEach((each, i) => each.classList.toggle("current", i === number));
}

function focus(number) {
  mark(number);
  const inputs = at("questions").children[number]?.querySelectorAll("input") || [];
  ([...inputs].find((input) => input.checked) || inputs[0])?.focus({ preventScroll: true });
  if (number > 0) at("questions").children[number].scrollIntoView({ block: "nearest" });
}

function progress() {
  const done = Object.values(state.done).reduce((sum, count) => sum + count, 0);
  const total = done + state.left - (again ? (state.done.skip || 0) + (state.done.unsure || 0) : 0);
  const minutes = (Date.now() - started) / 60000;
  const pace = saved >= 3 && minutes > 0 ? saved / minutes : 0;
  const left = pace ? `, about ${Math.max(1, Math.ceil(state.left / pace))} min left at ${pace.toFixed(1)} a minute` : "";
  at("progress").textContent = `${done} of ${total} decided${left}`;
  at("bar").style.width = total ? `${(100 * done) / total}%` : "0";
}

function fetchItem(id) {
  if (!ahead.has(id)) {
    ahead.set(id, call("item?id=" + encodeURIComponent(id)));
    ahead.get(id).catch(() => ahead.delete(id));
  }
  return ahead.get(id);
}

async function next(id = state.next[0]) {
  progress();
  at("work").hidden = !id;
  at("end").hidden = Boolean(id);
  if (!id) return finish();
  item = await fetchItem(id);
  ahead.delete(id);
  show();
  for (const other of state.next.slice(0, 4)) if (other !== id) fetchItem(other).catch(() => {});
}

function finish() {
  const count = (kind) => state.done[kind] || 0;
  at("tally").textContent = `${count("label")} labelled, ${count("unsure")} unsure, ${count("skip")} skipped.`;
  const open = count("unsure") + count("skip");
  at("again").hidden = !open;
  at("again").textContent = `Go through the ${open} skipped and unsure again`;
  at("reopen").hidden = !state.last;
  at("end-title").focus();
}

function problem(error) {
  at("problem").hidden = !error;
  at("problem").textContent = error ? error.message : "";
}

async function decide(decision, more = {}) {
  if (busy) return;
  busy = true;
  problem(null);
  try {
    state = await call("decide", { decision, id: item.id, known: item.known, again, ...more });
    saved += decision === "undo" ? -1 : 1;
    ahead.delete(item.id);
    await next();
  } catch (error) {
    problem(error);
    if (error.status === 409) { ahead.clear(); await refresh(); }
  } finally {
    busy = false;
  }
}

function save() {
  if (!at("noting").hidden) return decide("unsure", { note: at("note").value });
  const answer = answerNow();
  if (!answer) return problem(new Error("Answer every question first."));
  const texts = Object.fromEntries([...at("texts").querySelectorAll("textarea")].map((area) => [area.name, area.value.trim()]));
  return decide("label", { answer: { ...answer, ...texts }, ...(byFacts() ? { facts: item.given } : {}) });
}

// The latest decision is taken back and its request comes again, filled in as it was.
async function undo() {
  if (busy || !state.last) return;
  busy = true;
  problem(null);
  try {
    const id = state.last;
    ahead.delete(id);
    const was = await call("item?id=" + encodeURIComponent(id));
    state = await call("decide", { decision: "undo", id, known: was.known, again });
    saved = Math.max(0, saved - 1);
    const now = await call("item?id=" + encodeURIComponent(id));
    ahead.set(id, Promise.resolve({ ...now, decision: now.decision || was.decision }));
    await next(id);
  } catch (error) {
    problem(error);
  } finally {
    busy = false;
  }
}

function unsure() {
  noting(true);
  at("note").focus();
}

function noting(on) {
  at("noting").hidden = !on;
  at("save").firstChild.textContent = on ? "Save as unsure " : "Save ";
  at("save").disabled = !on && !answerNow();
}

async function refresh() {
  state = await call("state" + (again ? "?again=1" : ""));
  await next();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches("textarea, input:not([type=radio], [type=checkbox])");
  if (event.key === "Escape") {
    if (at("work").hidden) return;
    noting(false);
    focus(current);
  } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !event.target.matches("button")) {
    event.preventDefault();
    if (!at("work").hidden) save();
  } else if (writing) {
    return;
  } else if (event.key === "u") {
    undo();
  } else if (at("work").hidden) {
    return;
  } else if (/^[1-9]$/.test(event.key)) {
    choose(current, Number(event.key) - 1);
  } else if (event.key === "ArrowDown" || event.key === "j") {
    event.preventDefault();
    focus(Math.min(current + 1, questions.length - 1));
  } else if (event.key === "ArrowUp" || event.key === "k") {
    event.preventDefault();
    focus(Math.max(current - 1, 0));
  } else if (event.key === "s") {
    decide("skip");
  } else if (event.key === "?") {
    event.preventDefault();
    unsure();
  } else if (event.key === "e") {
    event.preventDefault();
    at("texts").querySelector("textarea")?.focus();
  }
});
at("answer").addEventListener("submit", (event) => { event.preventDefault(); save(); });
at("undo").onclick = at("reopen").onclick = () => undo();
at("skip").onclick = () => decide("skip");
at("unsure").onclick = () => unsure();
at("again").onclick = () => { again = true; ahead.clear(); refresh().catch(problem); };

(async () => {
  try {
    if (!JSON.rawJSON) throw new Error("This browser is too old to keep every digit of a number: use a newer one.");
    task = await call("task");
    for (const { facts, answer } of task.table || []) tables.answers.set(keyOf(facts), answer);
    for (const { facts, texts } of task.texts) tables.texts.set(keyOf(facts), texts);
    at("task").textContent = task.name;
    at("reviewer").textContent = "reviewer: " + task.reviewer;
    document.title = "Review: " + task.name;
    await refresh();
  } catch (error) {
    problem(error);
  }
})();
