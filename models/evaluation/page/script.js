"use strict";
(() => {
const at = (id) => document.getElementById(id);

/* A page inside a sandboxed frame, as MLflow shows it, may have no address to change. */
function setAddress(hash) {
  try { history.replaceState(null, "", hash); } catch (error) { if (error.name !== "SecurityError") throw error; }
}

/* Such a frame does not follow links inside the page either. */
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const hash = link.getAttribute("href"), target = at(hash.slice(1));
  event.preventDefault();
  setAddress(hash);
  if (!target) return;
  target.tabIndex = -1;
  target.scrollIntoView();
  target.focus({ preventScroll: true });
});

if (!at("list")) return;
const data = JSON.parse(at("gallery-data").textContent);
const ROW = 60, SPARE = 8, PRINTED = 8;
const FILTERS = ["right", "kind", "source", "crops", "find"];
const SVG = "http://www.w3.org/2000/svg";
const list = at("list"), rows = at("rows");
let set = null, shown = [], place = -1, step = 0, isWaiting = false;
const drawn = new Map(), haystacks = new Map();

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/* ---- what was said and seen ---- */

/* Stretches of a trajectory: each ends with what the model was given, a crop or a refusal. */
function turns(attempt) {
  const found = [[]];
  for (const part of attempt.parts) {
    found[found.length - 1].push(part);
    if (!("text" in part)) found.push([]);
  }
  if (found.length > 1 && !found[found.length - 1].length) found.pop();
  return found;
}

/* How many boxes were asked for up to a step; step 0 is the whole trajectory. */
function numBoxes(attempt, upTo) {
  const all = turns(attempt);
  return !upTo || upTo >= all.length ? attempt.boxes.length : upTo;
}

/* A picture with its boxes, numbered in the order they were asked for. */
function view(question, attempt, index, upTo) {
  const picture = question.pictures[index], [width, height] = picture.size, unit = Math.max(width, height) / 100;
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }), words = [];
  drawing.append(shape("image", { width, height, href: data.pictures[picture.key], preserveAspectRatio: "none" }));
  const rect = (b, style) => drawing.append(shape("rect", { x: b[0], y: b[1], width: Math.max(b[2] - b[0], 0), height: Math.max(b[3] - b[1], 0), fill: "none", ...style }));
  for (const box of picture.gold) {
    rect(box, { stroke: "#000", "stroke-width": 1.6 * unit, "stroke-opacity": 0.5 });
    rect(box, { stroke: "#fff", "stroke-width": unit, "stroke-dasharray": `${unit} ${1.5 * unit}` });
  }
  attempt.boxes.slice(0, numBoxes(attempt, upTo)).forEach((box, order) => {
    if (box.image !== index + 1) return;
    const number = order + 1;
    if (!box.at) { words.push(`box ${number} did not parse`); return; }
    const colour = box.error ? "#ff7a70" : "#ffd400", dash = box.error ? { "stroke-dasharray": `${2 * unit} ${unit}` } : {};
    rect(box.at, { stroke: "#000", "stroke-width": 2.2 * unit, "stroke-opacity": 0.55 });
    rect(box.at, { stroke: colour, "stroke-width": 1.2 * unit, ...dash });
    const wide = (3 + 3.6 * String(number).length) * unit, tall = 8 * unit;
    const x = Math.min(Math.max(box.at[0] - 0.6 * unit, 0), width - wide), y = Math.max(box.at[1] - tall, 0);
    drawing.append(shape("rect", { x, y, width: wide, height: tall, fill: colour }),
      shape("text", { x: x + wide / 2, y: y + 6.4 * unit, "font-size": 7 * unit, "font-weight": 700, "text-anchor": "middle" }, number));
    words.push(`box ${number} from ${box.at[0]}, ${box.at[1]} to ${box.at[2]}, ${box.at[3]}${box.error ? ", refused" : ""}`);
  });
  const name = question.pictures.length > 1 ? `Picture ${index + 1}` : "The picture";
  drawing.setAttribute("aria-label", `${name}, seen at ${width} by ${height} pixels. ${words.join("; ") || "No box was asked for"}.`);
  const figure = element("figure", "view");
  figure.append(drawing, element("figcaption", "", `${name}: seen at ${width} × ${height} px`));
  return figure;
}

/* What was written, with each crop in the place where the model received it. */
function said(attempt, upTo) {
  const whole = element("div", "said"), counts = { asked: 0, crops: 0 };
  const accepted = attempt.boxes.map((box, order) => ({ ...box, number: order + 1 })).filter((box) => !box.error);
  turns(attempt).forEach((parts, index) => {
    if (upTo && index >= upTo) return;
    const turn = element("div", upTo === index + 1 ? "turn now" : "turn");
    for (const part of parts) {
      if (part.crop) turn.append(crop(part, accepted[counts.crops++]));
      else if (part.note !== undefined) turn.append(element("span", "note", part.note));
      else sayText(turn, index ? part.text.trimStart() : part.text, attempt, counts);
    }
    whole.append(turn);
  });
  if (attempt.reason) whole.append(element("p", "note", attempt.reason));
  return whole;
}

function crop(part, asked) {
  const figure = element("figure", "crop"), image = element("img"), number = asked ? asked.number : "?";
  const moved = asked && String(asked.at) === String(part.box) ? "" : `, of another region: ${part.box.join(", ")}`;
  image.src = data.pictures[part.crop];
  image.width = Math.min(Math.max(part.size[0], 160), 320);
  image.alt = `Crop ${number}: the region ${part.box.join(", ")}, shown at ${part.size[0]} by ${part.size[1]} pixels`;
  figure.append(image, element("figcaption", "", `Crop ${number}: ${part.size[0]} × ${part.size[1]} px, ${part.tokens} tokens${moved}`));
  return figure;
}

function sayText(place, text, attempt, counts) {
  let isAnswer = false;
  for (const piece of text.split(/(<\/?think>|<\/?answer>|\{[^{}]*\})/)) {
    if (/^<\/?(think|answer)>$/.test(piece)) {
      isAnswer = piece === "<answer>";
      place.append(element("span", "tag", piece));
    } else if (piece.startsWith("{") && piece.includes("bbox_2d")) {
      const box = attempt.boxes[counts.asked++];
      place.append(element("code", "", piece));
      if (box) place.append(element("span", box.error ? "chip refused" : "chip", String(counts.asked)));
    } else if (piece) place.append(isAnswer ? element("strong", "", piece) : piece);
  }
}

function outcome(attempt) {
  if (attempt.right === null) return ["unclear", "unscored", "?"];
  return attempt.right ? ["good", "right", "✓"] : ["bad", "wrong", "✗"];
}

function plural(count, word) { return `${count} ${word}${count === 1 ? "" : "s"}`; }

function numbers(attempt) {
  const found = [["answer", attempt.answer === null ? "none" : attempt.answer], ["ended", attempt.stop.replaceAll("_", " ")],
    ["length", `${plural(attempt.tokens, "token")}, ${plural(attempt.crops, "crop")}`]];
  if (attempt.score !== null) found.push(["score", attempt.score.toFixed(3)]);
  if (attempt.iou !== null) found.push(["first box IoU", attempt.iou.toFixed(2)]);
  if (attempt.reward) {
    const names = { total: "reward", accuracy: "accuracy", format: "format", validity: "valid boxes", length: "length reward" };
    for (const [key, name] of Object.entries(names)) found.push([name, attempt.reward[key].toFixed(2)]);
  }
  if (attempt.advantage !== null) found.push(["advantage", attempt.advantage.toFixed(2)]);
  for (const box of attempt.boxes) if (box.error) found.push(["refused", box.error.replaceAll("_", " ")]);
  if (attempt.detail) found.push(["detail", attempt.detail]);
  const made = element("dl", "numbers");
  for (const [name, value] of found) {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    made.append(pair);
  }
  return made;
}

function attemptSection(question, name, upTo) {
  const attempt = question.attempts[name], section = element("section");
  const label = set.columns.find((column) => column.name === name).label, heading = element("h4", "", label);
  section.setAttribute("aria-label", label);
  section.append(heading);
  if (!attempt) { section.append(element("p", "small", "was not asked this question")); return section; }
  const [kind, word] = outcome(attempt), views = element("div", "views");
  heading.append(element("span", `badge ${kind}`, word));
  views.append(...question.pictures.map((_, index) => view(question, attempt, index, upTo)));
  section.append(views, said(attempt, upTo), numbers(attempt));
  return section;
}

function about(question) {
  return [question.kind, question.source, `expected: ${question.answers.join(" or ") || "not known"}`, question.id].filter(Boolean).join(" · ");
}

/* ---- the list: only the rows in sight exist ---- */

function chosenNames() {
  const first = at("f-first").value, second = at("f-second").value;
  return second && second !== first ? [first, second] : [first];
}

function row(index) {
  const question = shown[index], made = element("div", "row"), line = element("span", "line"), words = [];
  made.id = `row-${index}`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-posinset", index + 1);
  made.setAttribute("aria-setsize", shown.length);
  made.setAttribute("aria-selected", index === place);
  made.style.transform = `translateY(${index * ROW}px)`;
  for (const name of chosenNames()) {
    const attempt = question.attempts[name];
    if (!attempt) continue;
    const [kind, word, sign] = outcome(attempt), label = set.columns.find((column) => column.name === name).label;
    line.append(element("span", `mark ${kind}`, `${sign} ${label}`));
    words.push(`${label} ${word}`);
  }
  const first = question.attempts[chosenNames()[0]], rest = [question.kind, first ? plural(first.crops, "crop") : ""].filter(Boolean).join(" · ");
  line.append(rest);
  made.setAttribute("aria-label", `${question.text}. ${words.join(", ")}. ${rest}`);
  made.append(element("b", "", question.text), line);
  made.addEventListener("click", () => select(index));
  return made;
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  for (const [index, node] of drawn) if (index < first || index >= last) { node.remove(); drawn.delete(index); }
  for (let index = last - 1; index >= first; index--) {
    if (drawn.has(index)) continue;
    const node = row(index);
    drawn.set(index, node);
    rows.insertBefore(node, drawn.get(index + 1) || null);
  }
}

function drawDetail() {
  const question = shown[place], names = chosenNames();
  at("question").textContent = question ? question.text : "No question fits these filters";
  at("about").textContent = question ? about(question) : "Clear a filter to see more.";
  at("attempts").replaceChildren(...(question ? names.map((name) => attemptSection(question, name, step)) : []));
  const most = numSteps();
  at("step").textContent = step ? `Step ${step} of ${most}` : plural(most, "step");
  const off = { previous: place <= 0, next: place >= shown.length - 1, back: step === 0, forth: !most || step >= most, whole: step === 0 };
  for (const [id, isOff] of Object.entries(off)) at(id).setAttribute("aria-disabled", isOff);
}

function numSteps() {
  const question = shown[place];
  return question ? Math.max(0, ...chosenNames().map((name) => question.attempts[name] ? turns(question.attempts[name]).length : 0)) : 0;
}

/* Drawing waits for the next frame, so that a held key draws once per frame. */
function drawSoon() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; drawDetail(); remember(); });
}

function select(index, startAt = 0) {
  place = Math.max(0, Math.min(index, shown.length - 1));
  step = startAt;
  if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
  else if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  drawRows();
  for (const [index, node] of drawn) node.setAttribute("aria-selected", index === place);
  if (shown.length) list.setAttribute("aria-activedescendant", `row-${place}`);
  else list.removeAttribute("aria-activedescendant");
  drawSoon();
}

function replay(to) {
  step = Math.max(0, Math.min(to, numSteps()));
  drawSoon();
}

/* ---- filters ---- */

function haystack(question) {
  if (!haystacks.has(question)) {
    const spoken = Object.values(question.attempts).flatMap((attempt) => [attempt.answer || "", ...attempt.parts.map((part) => part.text || "")]);
    haystacks.set(question, [question.text, question.id, ...question.answers, ...spoken].join("\n").toLowerCase());
  }
  return haystacks.get(question);
}

function filter() {
  const [name, other] = chosenNames(), wanted = Object.fromEntries(FILTERS.map((key) => [key, at(`f-${key}`).value]));
  const words = wanted.find.trim().toLowerCase(), right = { right: true, wrong: false, unscored: null }[wanted.right];
  return set.questions.filter((question) => {
    const attempt = question.attempts[name], compared = other && question.attempts[other];
    if (!attempt || (wanted.kind && question.kind !== wanted.kind) || (wanted.source && question.source !== wanted.source)) return false;
    if (wanted.crops && Math.min(attempt.crops, 3) !== Number(wanted.crops)) return false;
    if (wanted.right === "differs" && (!compared || compared.right === attempt.right)) return false;
    if (right !== undefined && attempt.right !== right) return false;
    return !words || haystack(question).includes(words);
  });
}

function refresh(keep) {
  shown = filter();
  drawn.forEach((node) => node.remove());
  drawn.clear();
  rows.style.height = `${shown.length * ROW}px`;
  const count = shown.length * chosenNames().length;
  at("count").textContent = `${shown.length} of ${set.questions.length} questions, ${plural(count, "trajectory").replace(/ys$/, "ies")}`;
  const kept = shown.findIndex((question) => question.id === keep);
  if (kept < 0) list.scrollTop = 0;
  select(Math.max(0, kept), kept < 0 ? 0 : step);
}

function options(id, choices, chosen) {
  at(id).replaceChildren(...choices.map(([value, text]) => new Option(text, value, false, value === chosen)));
  at(id).closest("label").hidden = choices.length < (["f-kind", "f-source"].includes(id) ? 3 : 2);
}

function openSet(name) {
  set = data.sets.find((one) => one.name === name) || data.sets[0];
  const columns = set.columns.map((column) => [column.name, column.label]);
  const values = (key) => [["", "any"], ...[...new Set(set.questions.map((question) => question[key]))].filter(Boolean).sort().map((value) => [value, value])];
  options("f-set", data.sets.map((one) => [one.name, one.label]), set.name);
  options("f-first", columns, set.compare[0]);
  options("f-second", [["", "nobody"], ...columns], set.compare[1]);
  at("f-second").closest("label").hidden = columns.length < 2;
  options("f-kind", values("kind"), "");
  options("f-source", values("source"), "");
}

/* ---- links to a view ---- */

function state() {
  const found = new URLSearchParams({ set: set.name, a: at("f-first").value, b: at("f-second").value });
  for (const key of FILTERS) if (at(`f-${key}`).value) found.set(key, at(`f-${key}`).value);
  if (shown[place]) found.set("q", shown[place].id);
  if (step) found.set("step", step);
  return `#${found}`;
}

let isTouched = false;
function remember() {
  at("link").setAttribute("href", state());
  if (isTouched) setAddress(state());
}

function restore() {
  if (!location.hash.includes("=")) return false;
  const wanted = new URLSearchParams(location.hash.slice(1));
  openSet(wanted.get("set"));
  if (wanted.has("a")) at("f-first").value = wanted.get("a");
  if (wanted.has("b")) at("f-second").value = wanted.get("b");
  for (const key of FILTERS) at(`f-${key}`).value = wanted.get(key) || "";
  for (const id of ["f-first", "f-second", "f-right", "f-kind", "f-source", "f-crops"]) if (at(id).selectedIndex < 0) at(id).selectedIndex = 0;
  step = Number(wanted.get("step")) || 0;
  refresh(wanted.get("q"));
  at("gallery").scrollIntoView({ behavior: "instant" });
  return true;
}

/* ---- keys, clicks, paper ---- */

list.addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
new ResizeObserver(drawRows).observe(list);
list.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
  if (event.key in moves) select(place + moves[event.key]);
  else if (event.key === "ArrowRight") replay(step + 1);
  else if (event.key === "ArrowLeft") replay(step - 1);
  else if (event.key === "Enter") at("question").focus();
  else return;
  isTouched = true;
  event.preventDefault();
});
const clicks = {
  previous: () => select(place - 1), next: () => select(place + 1), back: () => replay(step - 1), forth: () => replay(step + 1), whole: () => replay(0),
  reset: () => { for (const key of FILTERS) at(`f-${key}`).value = ""; refresh(shown[place] && shown[place].id); },
};
for (const [id, act] of Object.entries(clicks)) {
  at(id).addEventListener("click", () => { if (at(id).getAttribute("aria-disabled") !== "true") { isTouched = true; act(); } });
}
at("gallery").addEventListener("pointerdown", () => { isTouched = true; });
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("input", (event) => {
  isTouched = true;
  const keep = shown[place] && shown[place].id;
  if (event.target.id === "f-set") openSet(event.target.value);
  refresh(keep);
});
addEventListener("hashchange", restore);
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const names = chosenNames(), start = Math.max(0, Math.min(place, shown.length - PRINTED));
  at("printed").replaceChildren(...shown.slice(start, start + PRINTED).map((question) => {
    const article = element("article"), attempts = element("div", "attempts");
    attempts.append(...names.map((name) => attemptSection(question, name, 0)));
    article.append(element("h3", "", question.text), element("p", "meta", about(question)), attempts);
    return article;
  }), element("p", "small", `${Math.min(PRINTED, shown.length)} of ${shown.length} questions are printed; open the page to see all.`));
});
addEventListener("afterprint", () => at("printed").replaceChildren());

if (!restore()) {
  openSet("");
  const [name, other] = set.compare;
  const telling = set.questions.find(({ attempts }) => attempts[name] && attempts[name].right && attempts[other] && attempts[other].right === false);
  refresh(telling && telling.id);
}
})();
