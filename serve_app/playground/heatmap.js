// The second view: mean mixing weights of tasks (rows) over sources (columns).

import { call } from "./api.js";
import { complain, counted, find, make } from "./view.js";

const STEPS = 8; // of the colour scale, from 0 to the greatest mean
const CHOSEN = 24; // tasks at first
const ROWS = 16; // of a request: few enough for any deployment, and progress shows

let tasks = [];
let running = null;

export function start() {
  find("heatmap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  find("all-tasks").addEventListener("click", () => check(true));
  find("no-tasks").addEventListener("click", () => check(false));
}

/** Take what can be asked; the first tasks that mix are chosen, unless they were unchosen before. */
export function know(found) {
  const unchosen = new Set(boxes().filter((box) => !box.checked).map((box) => box.value));
  tasks = found;
  const first = new Set(tasks.filter((task) => task.sources.length > 0).slice(0, CHOSEN).map((task) => task.task));
  const aliases = new Set(tasks.flatMap((task) => Object.keys(task.aliases)).filter((alias) => alias !== "champion"));
  const by = find("heatmap-version");
  const chosen = by.value;
  by.replaceChildren(
    make("option", { value: "" }, "what each task serves now"),
    ...[...aliases].sort().map((alias) => make("option", { value: alias, selected: alias === chosen }, `${alias}, where there is one`)),
  );
  find("heatmap-tasks").replaceChildren(
    ...tasks.map((task) =>
      make(
        "label",
        {},
        make("input", {
          type: "checkbox",
          value: task.task,
          checked: first.has(task.task) && !unchosen.has(task.task),
        }),
        task.task,
        task.sources.length ? null : make("span", { class: "hint" }, " mixes nothing"),
      ),
    ),
  );
}

const boxes = () => [...find("heatmap-tasks").querySelectorAll("input")];

function check(chosen) {
  for (const box of boxes()) box.checked = chosen;
}

/** Return the rows to be asked: examples of the chosen tasks, then what was pasted. */
function rows() {
  const chosen = new Set(boxes().filter((box) => box.checked).map((box) => box.value));
  const alias = find("heatmap-version").value;
  const examples = tasks
    .filter((task) => chosen.has(task.task))
    .map((task) => ({ ...task.example, task: alias in task.aliases ? `${task.task}@${alias}` : task.task }));
  const pasted = find("more-rows").value.split("\n").flatMap((line, index) => {
    if (!line.trim()) return [];
    let row;
    try {
      row = JSON.parse(line);
    } catch {
      row = undefined;
    }
    if (typeof row?.task !== "string") {
      throw new Error(`Line ${index + 1} is no JSON object with a task, such as {"task": "rte", "fields": {…}}.`);
    }
    return [row];
  });
  return [...examples, ...pasted];
}

async function run() {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  complain();
  const status = find("heatmap-status");
  try {
    const asked = rows();
    if (asked.length === 0) throw new Error("There is nothing to ask: choose a task, or paste rows.");
    const means = new Map();
    for (let start = 0; start < asked.length; start += ROWS) {
      status.textContent = `Asked ${start} of ${counted(asked.length, "row")}…`;
      const some = asked.slice(start, start + ROWS);
      const { page } = await call("v1/predict", { body: { rows: some, attention: true }, signal: mine.signal });
      page.rows.forEach((row, index) => count(means, some[index], row.attention));
    }
    draw(means);
    status.textContent = `${counted(asked.length, "row")} of ${counted(means.size, "task")}.`;
  } catch (error) {
    if (error.name === "AbortError") return;
    find("means").replaceChildren();
    status.textContent = "No means.";
    complain(error.message);
  }
}

function count(means, asked, weights) {
  const name = asked.prompt ? `${asked.task} (${asked.prompt})` : asked.task;
  if (!means.has(name)) means.set(name, { n: 0, sums: new Map() });
  const mean = means.get(name);
  if (!weights) return;
  mean.n += 1;
  for (const [source, weight] of Object.entries(weights)) mean.sums.set(source, (mean.sums.get(source) ?? 0) + weight);
}

function draw(means) {
  const sources = [...new Set([...means.values()].flatMap((mean) => [...mean.sums.keys()]))].filter((name) => name !== "target");
  const columns = [...sources, "target"];
  const value = (mean, column) => (mean.sums.has(column) ? mean.sums.get(column) / mean.n : undefined);
  const most = Math.max(...[...means.values()].flatMap((mean) => columns.map((column) => value(mean, column) ?? 0)));
  const lines = [...means].map(([name, mean]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      ...(mean.n === 0
        ? [make("td", { colspan: String(columns.length), class: "empty" }, "mixes nothing")]
        : columns.map((column) => cell(value(mean, column), most))),
      make("td", { class: "number" }, String(mean.n)),
    ),
  );
  const head = make("tr", {}, make("th", { scope: "col" }, "task"), ...columns.map((name) => make("th", { scope: "col" }, name)), make("th", { scope: "col" }, "n"));
  const table = make(
    "table",
    { class: "heat", "aria-labelledby": "means-title" },
    make("thead", {}, head),
    make("tbody", {}, ...lines),
  );
  find("means").replaceChildren(
    make("h2", { id: "means-title" }, "Mean mixing weight; n is the number of rows"),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "means-title" }, table),
    scale(most),
  );
}

function cell(mean, most) {
  if (mean === undefined) return make("td", { class: "empty" }, "–");
  const step = most > 0 ? Math.round((mean / most) * STEPS) : 0;
  return make("td", { class: `heat-${step}` }, mean.toFixed(2));
}

function scale(most) {
  const swatches = Array.from({ length: STEPS + 1 }, (_, step) => make("span", { class: `heat-${step}` }));
  return make("p", { class: "scale", role: "img", "aria-label": `Colours from 0 to ${most.toFixed(2)}` }, "0", ...swatches, most.toFixed(2));
}
