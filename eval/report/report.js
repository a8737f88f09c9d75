
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const sections = [...document.querySelectorAll(".dataset")].map((root) => ({
    root, data: JSON.parse(root.querySelector(".data").textContent),
  }));
  const dialog = document.getElementById("query");

  // every text on the page goes through textContent: passages are never HTML
  function make(name, attributes = {}, ...children) {
    const found = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.append(...children);
    return found;
  }

  function relevance(label, best) {
    const shape = label === null ? "?" : label <= 0 ? "○" : label >= best ? "●" : "◐";
    const words = label === null ? "not judged" : `label ${label}`;
    return make("span", { class: "rel", title: words, role: "img", "aria-label": words },
      label === null ? "?" : `${shape} ${label}`);
  }

  function order(data, docs, run, other) {
    const list = make("ol");
    for (let place = 1; place <= data.depth; place++) {
      const found = docs.find(([, , ranks]) => ranks[run] === place);
      if (!found) continue;
      const [doc, label, ranks] = found, [id, text] = data.docs[doc];
      const row = make("li", { title: id }, make("span", { class: "place" }, String(place)), relevance(label, data.best),
        make("span", { class: "what" }, text ?? id));
      if (ranks[other] === null || ranks[other] > data.depth) {
        const there = ranks[other] === null ? "–" : String(ranks[other]);
        row.append(make("span", { class: "from" }, run < other ? `→ ${there}` : `${there} →`));
      }
      list.append(row);
    }
    return list;
  }

  function lines(data, docs, run) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 10 ${data.depth * 10}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const [, , ranks] of docs) {
      const [from, to] = [ranks[0], ranks[run]];
      if (from === null || to === null || from > data.depth || to > data.depth) continue;
      const path = document.createElementNS(SVG, "path");
      const [a, b] = [from * 10 - 5, to * 10 - 5];
      path.setAttribute("d", `M0 ${a}C5 ${a} 5 ${b} 10 ${b}`);
      path.setAttribute("class", to < from ? "up" : to > from ? "down" : "same");
      svg.append(path);
    }
    svg.style.height = `${2 * data.depth}rem`;
    return svg;
  }

  function moved(from, to) {
    if (to === null) return `${from} → left out`;
    if (from === null) return `new → ${to}`;
    return from === to ? `stays ${to}` : `${from} → ${to}`;
  }

  function texts(data, docs, run) {
    const box = make("details", { class: "texts" }, make("summary", {}, `Passages (${docs.length})`));
    const last = (rank) => rank ?? Infinity;
    const sorted = [...docs].sort((a, b) => last(a[2][run]) - last(b[2][run]) || last(a[2][0]) - last(b[2][0]));
    for (const [doc, label, ranks] of sorted) {
      const [id, text, length] = data.docs[doc];
      const head = make("summary", {}, relevance(label, data.best), make("span", { class: "move" }, moved(ranks[0], ranks[run])),
        make("span", { class: "id line" }, id), " ", make("span", { class: "line" }, (text ?? "").slice(0, 80)));
      const body = make("div", { class: "body", dir: "auto" }, text ?? "Its text was not given.");
      const one = make("details", {}, head, body);
      const kept = [...(text ?? "")].length;
      if (kept && length > kept) {
        one.append(make("p", { class: "note" }, `The first ${kept} of ${length} characters.`));
      }
      box.append(one);
    }
    return box;
  }

  function movement(data, query, run) {
    const { docs } = data.queries[query];
    if (!docs) return make("p", { class: "note" }, "The page holds passages only of the queries that moved most; this is not one.");
    const shown = docs.filter(([, , ranks]) => [ranks[0], ranks[run]].some((rank) => rank !== null && rank <= data.depth));
    const grid = make("div", { class: "orders" },
      make("div", { class: "head" }, data.runs[0]), make("div"), make("div", { class: "head" }, data.runs[run]),
      order(data, shown, 0, run), lines(data, shown, run), order(data, shown, run, 0));
    return make("div", {}, grid, texts(data, shown, run));
  }

  function figures(data, query, run) {
    const { values } = data.queries[query], change = values[run] - values[0];
    return `${data.measure}: ${data.runs[0]} ${values[0].toFixed(4)}, ${data.runs[run]} ${values[run].toFixed(4)}` +
      ` (${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(4)})`;
  }

  function show(data, query, run) {
    const { id, text } = data.queries[query];
    document.getElementById("query-body").replaceChildren(
      make("h2", { id: "query-h" }, text ?? id), make("p", { class: "note" }, `Query ${id}. ${figures(data, query, run)}.`),
      movement(data, query, run));
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  // A chart is one stop of the Tab key; arrows go from point to point.
  function scatter(data, svg) {
    const run = Number(svg.dataset.run), points = [...svg.querySelectorAll(".pt")];
    const readout = svg.parentElement.querySelector(".readout");
    const tell = (point) => {
      const query = Number(point.dataset.query), { id, text } = data.queries[query];
      readout.textContent = `${text ?? id}: ${figures(data, query, run)}`;
    };
    points.forEach((point, i) => {
      point.setAttribute("role", "button");
      point.setAttribute("tabindex", i ? "-1" : "0");
      point.addEventListener("focus", () => tell(point));
      point.addEventListener("mouseenter", () => tell(point));
      point.addEventListener("click", () => show(data, Number(point.dataset.query), run));
    });
    svg.addEventListener("keydown", (event) => {
      const at = points.indexOf(document.activeElement), last = points.length - 1;
      if (at < 0) return;
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      const to = event.key === "Home" ? 0 : event.key === "End" ? last : step ? Math.min(last, Math.max(0, at + step)) : null;
      if (event.key === "Enter" || event.key === " ") show(data, Number(points[at].dataset.query), run);
      else if (to === null) return;
      else {
        points[at].setAttribute("tabindex", "-1");
        points[to].setAttribute("tabindex", "0");
        points[to].focus();
      }
      event.preventDefault();
    });
  }

  for (const { root, data } of sections) {
    root.querySelectorAll(".scatter").forEach((svg) => scatter(data, svg));
    root.querySelectorAll("button[data-query]").forEach((button) =>
      button.addEventListener("click", () => show(data, Number(button.dataset.query), Number(button.dataset.run))));
    root.querySelectorAll(".mover").forEach((box) => {
      const fill = () => {
        if (!box.querySelector(".orders")) box.append(movement(data, Number(box.dataset.query), Number(box.dataset.run)));
      };
      if (box.open) fill();
      box.addEventListener("toggle", fill);
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
