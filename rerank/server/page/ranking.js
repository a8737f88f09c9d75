// Shows rankings {query, docs, rankings: [{answer, seconds}]}, `docs` being in the given order. All of it is text from
// anywhere, and is shown as text, never as HTML.

const MOST_MOVED = 200; // passages whose moves are shown
const MARKS = { empty: "empty: not ranked", shortened: "shortened to the limit", neutralised: "control tokens broken" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function make(tag, kind = "", ...inside) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...inside);
  return made;
}

export const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const inSeconds = (value) => `${value.toFixed(2)} s`;
const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);
const order = ({ answer }) => answer.results.map((each) => each.index);

export function summary(ranking) {
  const first = order(ranking)[0] + 1;
  const was = first === 1 ? "The first stays the first." : `The first was number ${first}.`;
  const { answer, seconds } = ranking;
  return `${answer.model} ranked ${many(answer.results.length, "passage")} in ${inSeconds(seconds)}. ${was}`;
}

/** Into the element `where`; the rankings from the place `fresh` on are seen to move. */
export function show(where, shown, fresh) {
  const columns = make("div", shown.rankings.length > 1 ? "columns two" : "columns");
  where.replaceChildren(make("p", "asked", shown.query), ...agreement(shown), columns);
  columns.append(...shown.rankings.map((_, place) => column(shown, place)));
  shown.rankings.forEach((ranking, place) => {
    settle(columns.children[place].querySelector("ol"), order(ranking), place >= fresh);
  });
}

function agreement({ rankings, docs }) {
  if (rankings.length < 2) return [];
  const k = Math.min(10, Math.ceil(docs.length / 2)); // of all there are, all are in both
  const [one, two] = rankings.map((ranking) => order(ranking).slice(0, k));
  const both = one.filter((index) => two.includes(index)).length;
  const same = one.filter((index, place) => index === two[place]).length;
  return [make("p", "agreement", `Of the first ${k} of each, ${both} are in both, and ${same} at the same rank.`)];
}

/** A ranker's facts, and its passages in the order that they were given in. */
function column(shown, place) {
  const ranking = shown.rankings[place];
  const { model, results, rerank } = ranking.answer;
  const made = template("column");
  const find = (name) => made.querySelector(name);
  find("h3").textContent = model;
  find("h3").id = `ranker-${place}`;
  made.setAttribute("aria-labelledby", `ranker-${place}`);
  find(".strategy").textContent = rerank.strategy === model ? "" : rerank.strategy;
  for (const [name, value] of facts(ranking)) {
    find("dl").append(make("div", "", make("dt", "", name), make("dd", "", value)));
  }
  find(".notices").append(...notices(shown, ranking).map(([kind, text]) => make("li", kind, text)));
  if (rerank.reasoning.length) {
    find("summary").textContent = `Reasoning (${rerank.reasoning.length})`;
    find(".reasoning").append(...rerank.reasoning.map((text) => make("p", "", text)));
  } else {
    find(".reasoning").remove();
  }
  const items = results.map((result, at) => [result.index, hit(shown, place, result, at + 1)]);
  find("ol").append(...items.sort(([a], [b]) => a - b).map(([, item]) => item));
  return made;
}

function facts({ answer, seconds }) {
  const { usage, outcomes, waited_s } = answer.rerank;
  const told = (n) => n.toLocaleString("en");
  return [
    ["Time", inSeconds(seconds)],
    ["Waited", inSeconds(waited_s)],
    ["Calls", told(usage.calls)],
    ["Tokens in", told(usage.prompt_tokens)],
    ["Tokens out", told(usage.generated_tokens)],
    ["Unreadable", told(outcomes.failed)],
  ];
}

function notices({ docs }, ranking) {
  const { usage, outcomes } = ranking.answer.rerank;
  const said = [];
  const judged = (places) => places.findIndex((place) => docs[place].label > 0) + 1;
  const before = judged([...docs.keys()]);
  if (before) said.push(["", `First passage judged relevant: rank ${before} → ${judged(order(ranking))}`]);
  if (outcomes.failed) {
    const kept = "What they were asked about keeps its order, or goes last.";
    said.push(["bad", `${outcomes.failed} of ${many(usage.calls, "answer")} could not be read. ${kept}`]);
  }
  if (outcomes.repaired) {
    const found = ["duplicate", "foreign", "missing"].filter((name) => outcomes[name]);
    const why = found.map((name) => `${outcomes[name]} ${name}`).join(", ");
    said.push(["odd", `${many(outcomes.repaired, "answer")} had to be repaired${why && `: ${why}`}.`]);
  }
  if (outcomes.cut) said.push(["odd", `${many(outcomes.cut, "passage")} had to be cut to fit.`]);
  if (outcomes.neutralised) {
    said.push(["odd", `${many(outcomes.neutralised, "passage")} imitated control tokens, which were broken up.`]);
  }
  return said;
}

function hit(shown, place, result, rank) {
  const { answer } = shown.rankings[place];
  const item = template("hit");
  const find = (name) => item.querySelector(name);
  const was = result.index + 1;
  const move = rank < was ? "up" : rank > was ? "down" : "";
  item.dataset.index = result.index;
  item.classList.add(move || "same");
  const moved = make("span", "was", make("span", "aside", move && `${move} `), move ? `from ${was}` : "as given");
  find(".place").append(make("span", "aside", "Rank "), make("b", "", String(rank)), " ", moved);
  find(".text").textContent = shown.docs[result.index].text || "(empty)";
  find(".marks").append(...marks(shown, place, result).map(([kind, text]) => make("span", kind, text)));
  find(".score").append(...score(result, answer));
  return item;
}

function marks({ docs, rankings }, place, result) {
  const { docid, label } = docs[result.index];
  const found = docid ? [["", docid]] : [];
  if (label > 0) found.push(["good", label === 1 ? "judged relevant" : `judged ${label}`]);
  found.push(...result.rerank.outcomes.map((name) => ["odd", MARKS[name] ?? String(name)]));
  rankings.forEach((other, at) => {
    const [model, there] = [other.answer.model, order(other).indexOf(result.index) + 1];
    if (at !== place) found.push(["", `rank ${there} by ${model}`]);
  });
  return found;
}

/** The relevance, a bar from the list's least score to its greatest, and the ranker's own score. */
function score(result, { results }) {
  const own = result.rerank.score;
  if (own === null) return [make("span", "own", "no score")];
  const scores = results.map((each) => each.rerank.score).filter((each) => each !== null);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const digits = Math.max(...results.map((each) => each.relevance_score)) < 0.1 ? 5 : 3;
  const bar = make("span", "bar");
  bar.style.setProperty("--share", most > least ? (own - least) / (most - least) : 0);
  const relevance = make("b", "", result.relevance_score.toFixed(digits));
  const raw = make("span", "own", make("span", "aside", "score "), own.toFixed(2).replace("-", "−"));
  return [make("span", "aside", "Relevance "), relevance, " ", bar, " ", raw];
}

/** Puts the passages into the ranker's order, and lets them be seen to move there. */
function settle(list, ranked, moving) {
  const items = [...list.children];
  const before = items.map((item) => item.offsetTop);
  list.append(...ranked.map((index) => items[index]));
  if (!moving || calm.matches || items.length > MOST_MOVED) return;
  const after = items.map((item) => item.offsetTop);
  items.forEach((item, place) => {
    const steps = [{ transform: `translateY(${before[place] - after[place]}px)` }, { transform: "none" }];
    if (before[place] !== after[place]) item.animate(steps, { duration: 700, easing: "cubic-bezier(.3, .7, .2, 1)" });
  });
}

/** What can be read without a service and without a script, as one HTML file. */
export function standalone(where, title, css) {
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
${make("title", "", title).outerHTML}
<style>
${css}</style>
<main class="alone">
<h1>Ranking</h1>
${where.outerHTML}
</main>
</html>
`;
}
