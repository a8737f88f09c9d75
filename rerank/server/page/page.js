// The page of `rerank serve`: what is asked, of the service's public API, and what is kept and shared.

import { FORMAT, asList, hasBlankLines, isJson, listsOf, split } from "./lists.js";
import { make, many, show, standalone, summary } from "./ranking.js";

const $ = (id) => document.getElementById(id);
const KEY = "rerank-key";
const MOST_BYTES = 50 * 2 ** 20; // of a file; what it takes of it the service says itself

let lists = []; // what can be started from
let known = new Map(); // a passage as it stands in its field -> what it came as; several where it came several times
let shown = null; // {query, docs, rankings: [{answer, seconds}]}
let running = null; // the AbortController of a ranking
let key = "";

const say = (text) => ($("status").textContent = text);

function fail(text) {
  $("wrong").textContent = text;
  if (text) say("");
}

function option(value, text) {
  const made = make("option", "", text);
  made.value = value;
  return made;
}

// ---- the passages

const inField = (doc) => doc.text.replace(/\s+/g, " ").trim();

/** The passages in their field, as they came where they are unchanged. */
function passages() {
  const met = new Map();
  return split($("passages").value).map((text) => {
    const times = met.get(text) ?? 0;
    met.set(text, times + 1);
    return known.get(text)?.[times] ?? { text };
  });
}

function count() {
  const text = $("passages").value;
  const n = split(text).length;
  const how = hasBlankLines(text) ? "by blank lines" : "by lines";
  $("count").textContent = n > 1 ? `${many(n, "passage")}, ${how}` : n ? "1 passage" : "no passages";
}

function start(list) {
  if (list.query) $("query").value = list.query;
  known = new Map();
  for (const doc of list.docs) known.set(inField(doc), [...(known.get(inField(doc)) ?? []), doc]);
  $("passages").value = list.docs.map(inField).filter(Boolean).join("\n\n");
  count();
  const saved = list.rankings?.length;
  render(saved ? { query: list.query, docs: list.docs, rankings: list.rankings } : null, Infinity);
  say(`${saved ? "A saved ranking of " : ""}${many(list.docs.length, "passage")}${saved ? "." : " to rank."}`);
}

function render(made, fresh) {
  shown = made;
  $("tools").hidden = !shown;
  if (shown) show($("result"), shown, fresh);
  else $("result").replaceChildren();
}

/** On a phone the ranking is below what was asked. */
function bringIntoView() {
  if ($("answers").getBoundingClientRect().top > innerHeight * 0.75) $("answers").scrollIntoView();
}

/** Takes a file's or a pasted text; several lists of it can be chosen from. */
function take(text, name) {
  fail("");
  try {
    const found = listsOf(text.replace(/^\uFEFF/, ""), /\.jsonl?$/i.test(name));
    if (!found.some((list) => list.docs.length)) throw new Error("There is no passage in it.");
    offer(name, found);
    $("list").value = String(lists.length - found.length);
    start(found[0]);
  } catch (error) {
    fail(`${name} cannot be used. ${error.message}`);
  }
}

function offer(name, found) {
  const group = make("optgroup");
  group.label = name;
  for (const list of found) {
    group.append(option(String(lists.length), list.query || many(list.docs.length, "passage")));
    lists.push(list);
  }
  $("list").append(group);
}

async function takeFiles(files) {
  if (files.length > 1) return fail("Give one file at a time.");
  const [file] = files;
  if (file.size > MOST_BYTES) return fail(`${file.name} has more than 50 MB. Give fewer passages.`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    take(text, file.name);
  } catch {
    fail(`${file.name} is no text in UTF-8.`);
  }
}

// ---- the service

const WRONG = {
  too_large: "That is more than the service takes",
  too_slow: "The passages took too long to arrive",
  too_many_requests: "Too many of your requests are open",
  busy: "The service is busy",
  timeout: "The ranking took too long",
  shutting_down: "The service is ending",
  engine: "The engine failed",
  internal: "The service failed",
};

/** Its JSON. What goes wrong is an Error whose message is for people. */
async function ask(path, body, signal) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body) headers["content-type"] = "application/json";
  let answer, told;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    told = await answer.json().catch((error) => (error instanceof SyntaxError ? null : Promise.reject(error)));
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The service does not answer. See whether “rerank serve” still runs there, and try again.");
  }
  if (answer.ok && told) return told;
  if (answer.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    throw new Error(key ? "The service does not know this API key. Give another." : "The service wants an API key.");
  }
  if (!told?.message) throw new Error(`Something answered with status ${answer.status} in the service's place.`);
  const wait = answer.headers.get("retry-after");
  const again = wait ? ` Try again in ${wait} s.` : "";
  throw new Error(`${WRONG[told.error_type] ?? "The service refused it"}: ${told.message}.${again}`);
}

async function load() {
  fail("");
  try {
    const models = (await ask("v1/models")).data;
    const options = () => models.map(({ id, strategy }) => option(id, id === strategy ? id : `${id}: ${strategy}`));
    $("key-form").hidden = true;
    $("ranker").replaceChildren(...options());
    $("other").replaceChildren(option("", "no other"), ...options());
    const samples = (await ask("v1/samples")).data;
    if (!$("licence").hidden) return; // another key was given, and they are there
    for (const sample of samples) offer(`Sample: ${sample.id}`, sample.lists.map(asList));
    licences(samples);
  } catch (error) {
    fail(error.message);
  }
}

/** Their Markdown as plain text. */
function licences(samples) {
  const plain = (text) => text.replace(/^#+ |\*\*|`/gm, "").replace(/\[([^\]]*)\]\(([^)]*)\)/g, "$1, $2");
  $("licence").lastElementChild.replaceChildren(...samples.map((each) => make("p", "", plain(each.licence))));
  $("licence").hidden = false;
}

async function rank() {
  if (running) return;
  const [query, docs] = [$("query").value.trim(), passages()];
  const names = [$("ranker").value, $("other").value].filter(Boolean);
  if (!query) return lacking("query", "Write a query first.");
  if (!docs.length) return lacking("passages", "Give some passages first.");
  if (!names.length) return load(); // the service was not there, or wanted a key
  const made = { query, docs, rankings: [] };
  running = new AbortController();
  const ticking = busy();
  try {
    for (const model of names) {
      say(`${model} ranks ${many(docs.length, "passage")}…`);
      const begun = performance.now();
      const answer = await ask("v2/rerank", { model, query, documents: docs.map((doc) => doc.text) }, running.signal);
      made.rankings.push({ answer, seconds: (performance.now() - begun) / 1000 });
      render(made, made.rankings.length - 1);
      bringIntoView();
      say(summary(made.rankings.at(-1)));
    }
  } catch (error) {
    if (running.signal.aborted) say("Cancelled. The service gives up what it had begun.");
    else fail(error.message);
  } finally {
    clearInterval(ticking);
    running = null;
    idle();
  }
}

function lacking(id, text) {
  $(id).focus();
  fail(text);
}

function busy() {
  fail("");
  $("cancel").hidden = false;
  $("rank").ariaDisabled = $("answers").ariaBusy = "true";
  const begun = performance.now();
  return setInterval(() => ($("elapsed").textContent = `${((performance.now() - begun) / 1000).toFixed(1)} s`), 100);
}

function idle() {
  if (document.activeElement === $("cancel")) $("rank").focus();
  $("cancel").hidden = true;
  $("rank").ariaDisabled = $("answers").ariaBusy = "false";
  $("elapsed").textContent = "";
}

// ---- the key, which this tab keeps

function keep(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // a browser that keeps nothing: it holds until the page is left
  }
  $("forget").hidden = !value;
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

// ---- sharing

function download(name, type, text) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const fileName = () => `rerank ${shown.query}`.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50).replace(/-$/, "");

function save() {
  download(`${fileName()}.json`, "application/json", JSON.stringify({ format: FORMAT, ...shown }));
}

async function savePage() {
  try {
    const css = await (await fetch("page.css")).text();
    download(`${fileName()}.html`, "text/html", standalone($("result"), `rerank: ${shown.query}`, css));
  } catch {
    fail("The page's style could not be had from the service, so no page was saved.");
  }
}

// ---- what is done on what

const on = (id, event, what) => $(id).addEventListener(event, what);

on("ask", "submit", (event) => (event.preventDefault(), rank()));
on("ask", "keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) rank();
});
on("cancel", "click", () => running?.abort());
on("passages", "input", count);
on("passages", "paste", (event) => {
  const text = event.clipboardData.getData("text/plain");
  const { value, selectionStart, selectionEnd } = event.target;
  if (!isJson(text) || selectionEnd - selectionStart < value.length) return;
  event.preventDefault();
  take(text, "Pasted");
});
on("list", "change", () => {
  fail("");
  start(lists[$("list").value] ?? { query: "", docs: [] });
});
on("open", "click", () => $("file").click());
on("file", "change", () => takeFiles([...$("file").files]).then(() => ($("file").value = "")));
on("whole", "click", () => {
  $("whole").ariaPressed = String($("answers").classList.toggle("whole"));
});
on("save", "click", save);
on("save-page", "click", savePage);
on("forget", "click", () => (keep(""), say("The key is forgotten.")));
on("key-form", "submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) return fail("An API key is letters, digits and signs, without a space.");
  keep(given);
  $("key").value = "";
  load();
});
on("result", "pointerover", (event) => {
  const index = event.target.closest("li[data-index]")?.dataset.index;
  for (const item of $("result").querySelectorAll("li")) item.classList.toggle("met", item.dataset.index === index);
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => !event.relatedTarget && document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return; // text goes where it is dropped
  event.preventDefault();
  takeFiles([...event.dataTransfer.files]);
});

keep(remembered());
load();
