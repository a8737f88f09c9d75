// What a text or a file holds: lists {query, docs: [{docid, text, label}], rankings?}.

export const FORMAT = "rerank ranking 1";
const TEXTS = ["text", "segment", "contents", "content", "body", "passage", "page_content"];

/** `must` says that it has to be JSON. */
export function listsOf(text, must = false) {
  const records = recordsOf(text, must);
  if (!records) return [{ query: "", docs: split(text).map((each) => ({ text: each })) }];
  if (records.length && records.every(docsOf)) return records.map(asList);
  return [{ query: "", docs: records.map(asDoc) }];
}

/** A passage a line; or, where there are blank lines, a passage between them. */
export function split(text) {
  const plain = text.replace(/\r\n?/g, "\n").trim();
  const parts = plain.split(hasBlankLines(plain) ? /\n(?:[^\S\n]*\n)+/ : "\n");
  return parts.map((each) => each.trim()).filter(Boolean);
}

export const hasBlankLines = (text) => /\n[^\S\n]*\n/.test(text.trim());

export const isJson = (text) => recordsOf(text, false) !== null;

function recordsOf(text, must) {
  if (!must && !/^\s*[[{]/.test(text)) return null;
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found : [found];
  } catch {
    // perhaps a record on each line
  }
  const records = [];
  for (const [place, line] of text.split("\n").entries()) {
    try {
      if (line.trim()) records.push(JSON.parse(line));
    } catch (error) {
      if (!must) return null; // "[1] a passage" is no JSON, and need not be
      throw new Error(`It is neither JSON nor JSON Lines. Line ${place + 1}: ${error.message}.`);
    }
  }
  return records;
}

function docsOf(record) {
  return [record?.docs, record?.documents, record?.candidates, record?.hits, record?.passages].find(Array.isArray);
}

export function asList(record) {
  const query = typeof record.query === "string" ? record.query : String(record.query?.text ?? "");
  const docs = docsOf(record).map(asDoc);
  const saved = record.format === FORMAT ? record.rankings : [];
  if (saved.length && !saved.every((ranking) => isWhole(ranking, docs.length))) {
    throw new Error("Its rankings are not whole, or are not of its passages.");
  }
  return { query, docs, rankings: saved };
}

function asDoc(item, place) {
  if (typeof item === "string") return { text: item };
  const inner = item?.doc ?? item ?? {};
  const text = TEXTS.map((name) => inner[name]).find((each) => typeof each === "string");
  if (text === undefined) {
    throw new Error(`Passage ${place + 1} has no text; it should be text, or an object with "text".`);
  }
  const id = item.docid ?? item.doc_id ?? item._id ?? item.id;
  return {
    docid: id === undefined ? undefined : String(id),
    text: inner.title ? `${inner.title} ${text}` : text,
    label: Number.isInteger(item.label) ? item.label : undefined,
  };
}

/** Anyone may have written a saved ranking. */
function isWhole(ranking, n) {
  const numbers = (object, ...names) => names.every((name) => Number.isFinite(object?.[name]));
  const { results, rerank } = ranking?.answer ?? {};
  const isResult = (each) =>
    numbers(each, "index", "relevance_score") &&
    (each.rerank?.score === null || numbers(each.rerank, "score")) &&
    Array.isArray(each.rerank.outcomes);
  return (
    Array.isArray(results) &&
    results.every(isResult) &&
    String(results.map((each) => each.index).sort((a, b) => a - b)) === String([...Array(n).keys()]) &&
    numbers(ranking, "seconds") &&
    numbers(rerank, "waited_s") &&
    numbers(rerank.usage, "calls", "prompt_tokens", "generated_tokens") &&
    numbers(rerank.outcomes, "failed", "repaired", "cut", "neutralised") &&
    Array.isArray(rerank.reasoning)
  );
}
