// The first view: rows of several tasks and versions, their answers side by side, and the call as a curl line.

import { address, call, key } from "./api.js";
import { bars, clock, complain, counted, find, make } from "./view.js";

let tasks = new Map();
let picks = []; // {task, version}, version as it stands after the task's name: "", "@v3", "@candidate"
const inputs = new Map(); // by task: {ready, fields, text}
let running = null;

export function start() {
  find("add-pick").addEventListener("click", () => {
    const unused = [...tasks.keys()].find((name) => !picks.some((pick) => pick.task === name));
    if (tasks.size === 0) return;
    add({ task: unused ?? [...tasks.keys()][0], version: "" });
  });
  find("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  find("ask-form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
  });
  find("copy").addEventListener("click", copy);
}

/** Take what can be asked; what was picked and typed stays where it still can. */
export function know(found) {
  tasks = new Map(found.map((task) => [task.task, task]));
  picks = picks.filter((pick) => tasks.has(pick.task));
  if (picks.length === 0 && tasks.size > 0) picks = [{ task: [...tasks.keys()][0], version: "" }];
  for (const task of tasks.values()) {
    if (!inputs.has(task.task)) {
      const { fields, text } = task.example;
      inputs.set(task.task, { ready: !fields, fields: { ...(fields ?? {}) }, text: text ?? "" });
    }
  }
  draw();
}

function add(pick, place = picks.length) {
  picks.splice(place, 0, pick);
  draw();
  find(`pick-${place}-${pick.version ? "version" : "task"}`).focus();
}

function draw() {
  find("picks").replaceChildren(...picks.map(pickRow));
  find("inputs").replaceChildren(...[...new Set(picks.map((pick) => pick.task))].map(inputOf));
  showCurl();
}

function pickRow(pick, index) {
  const task = tasks.get(pick.task);
  const next = unusedVersion(task);
  const choose = (name, id, options, chosen, change) =>
    make(
      "span",
      { class: "choice" },
      make("label", { for: id }, name),
      make(
        "select",
        {
          id,
          onchange: (event) => {
            change(event.target.value);
            draw();
            find(id).focus();
          },
        },
        ...options.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
      ),
    );
  const compare =
    next === undefined
      ? null
      : make(
          "button",
          {
            type: "button",
            "aria-label": `Compare ${pick.task} with another version`,
            onclick: () => add({ task: pick.task, version: next }, index + 1),
          },
          "Compare",
        );
  const remove =
    picks.length === 1
      ? null
      : make(
          "button",
          {
            type: "button",
            "aria-label": `Remove ${pick.task}${pick.version}`,
            onclick: () => {
              picks.splice(index, 1);
              draw();
              find("add-pick").focus();
            },
          },
          "Remove",
        );
  return make(
    "li",
    {},
    choose("Task", `pick-${index}-task`, [...tasks.keys()].map((name) => [name, name]), pick.task, (name) => {
      picks[index] = { task: name, version: "" };
    }),
    choose("Version", `pick-${index}-version`, versions(task), pick.version, (version) => {
      picks[index] = { ...pick, version };
    }),
    next === undefined && picks.length === 1 ? null : make("span", { class: "actions" }, compare, remove),
  );
}

function versions(task) {
  const served = task.prompt.slice(task.prompt.lastIndexOf("@") + 1);
  const aliases = Object.entries(task.aliases).filter(([alias]) => alias !== "champion");
  return [
    ["", `served now (${served})`],
    ...aliases.map(([alias, version]) => [`@${alias}`, `${alias} (v${version})`]),
    ...[...task.versions].sort((a, b) => b - a).map((version) => [`@v${version}`, `v${version}`]),
  ];
}

/** Return a version that is not picked yet and is another one than those that are. */
function unusedVersion(task) {
  const number = (version) => {
    if (version === "") return Number(task.prompt.slice(task.prompt.lastIndexOf("@v") + 2));
    return version.startsWith("@v") ? Number(version.slice(2)) : task.aliases[version.slice(1)];
  };
  const used = new Set(picks.filter((pick) => pick.task === task.task).map((pick) => number(pick.version)));
  return versions(task)
    .map(([version]) => version)
    .find((version) => !used.has(number(version)));
}

function inputOf(name, index) {
  const task = tasks.get(name);
  const input = inputs.get(name);
  const area = (id, label, text, change) =>
    make(
      "div",
      { class: "field" },
      make("label", { for: id }, label),
      make("textarea", {
        id,
        rows: "2",
        oninput: (event) => {
          change(event.target.value);
          showCurl();
        },
      }, text),
    );
  const fields = Object.entries(input.fields).map(([field, value], place) =>
    area(`input-${index}-${place}`, field, Array.isArray(value) ? value.join("\n") : String(value), (text) => {
      input.fields[field] = likeExample(text, task.example.fields[field]);
    }),
  );
  const modes = [
    [false, "Fields"],
    [true, "Ready text"],
  ].map(([ready, label]) =>
    make(
      "label",
      {},
      make("input", {
        type: "radio",
        name: `mode-${index}`,
        id: `mode-${index}-${ready ? "text" : "fields"}`,
        checked: input.ready === ready,
        onchange: (event) => {
          input.ready = ready;
          draw();
          find(event.target.id).focus();
        },
      }),
      label,
    ),
  );
  return make(
    "fieldset",
    {},
    make("legend", {}, name, make("span", { class: "hint" }, ` ${task.kind}`)),
    fields.length ? make("div", { class: "modes", role: "radiogroup", "aria-label": `Input of ${name}` }, ...modes) : null,
    ...(input.ready ? [area(`input-${index}-text`, "Text, as the language model reads it", input.text, (text) => (input.text = text))] : fields),
  );
}

/** Return what was typed with the type that the example's field has. */
function likeExample(text, example) {
  if (Array.isArray(example)) return text.split("\n").filter((line) => line.trim());
  if (typeof example === "number" && text.trim() && Number.isFinite(Number(text))) return Number(text);
  if (typeof example === "boolean" && ["true", "false"].includes(text.trim())) return text.trim() === "true";
  return text;
}

function request() {
  const rows = picks.map((pick) => {
    const input = inputs.get(pick.task);
    const task = pick.task + pick.version;
    return input.ready ? { task, text: input.text } : { task, fields: input.fields };
  });
  return { rows, attention: true };
}

function showCurl() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -sS ${quoted(address("v1/predict"))}`];
  if (key()) lines.push('-H "Authorization: Bearer $ATTEMPT_API_KEY"');
  lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(request()))}`);
  find("curl").textContent = lines.join(" \\\n  ");
}

async function copy() {
  const text = find("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
    find("copied").textContent = "Copied.";
  } catch {
    // Pages that came over plain http from elsewhere have no clipboard.
    getSelection().selectAllChildren(find("curl"));
    find("curl").focus();
    find("copied").textContent = "Selected; copy it with Ctrl + C.";
  }
}

async function run() {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  const body = request();
  complain();
  find("ask-status").textContent = "Running…";
  find("cards").setAttribute("aria-busy", "true");
  try {
    const { page, milliseconds, timing } = await call("v1/predict", { body, signal: mine.signal });
    show(page.rows);
    const spent = timing.map(([name, duration]) => `${name} ${clock(duration)}`).join(", ");
    find("ask-status").textContent = `${counted(page.rows.length, "answer")} in ${clock(milliseconds)}${spent ? ` (${spent})` : ""}`;
    find("spoken").textContent = page.rows.map((row) => `${row.prompt}: ${row.label ?? row.answer}`).join(". ");
  } catch (error) {
    if (error.name === "AbortError") return;
    find("cards").replaceChildren();
    find("ask-status").textContent = "No answer.";
    complain(error.message);
  } finally {
    if (running === mine) find("cards").removeAttribute("aria-busy");
  }
}

function show(rows) {
  const first = new Map();
  const cards = rows.map((row) => {
    const before = first.get(row.task);
    if (before === undefined) first.set(row.task, row);
    return card(row, before);
  });
  find("cards").replaceChildren(...cards);
}

function card(row, before) {
  const same = before && before.answer === row.answer;
  return make(
    "article",
    { class: "card" },
    make("h3", {}, row.task),
    make("p", { class: "badges" }, make("span", { class: "badge" }, row.prompt), make("span", { class: `badge ${row.role}` }, row.role)),
    make("p", { class: "answer" }, (row.label ?? row.answer) || "(nothing)"),
    row.label !== null && row.label !== row.answer ? make("p", { class: "hint" }, `written as ${row.answer}`) : null,
    row.probabilities && row.label === null ? make("p", { class: "notice" }, "The answer is none of the task's labels.") : null,
    before ? make("p", { class: "hint" }, `${same ? "The same answer as" : "Another answer than"} ${before.prompt}.`) : null,
    row.truncated ? make("p", { class: "notice" }, "The input was longer than the task's limit and lost its end.") : null,
    row.finished === false ? make("p", { class: "notice" }, "The answer reached its longest and was cut off.") : null,
    row.probabilities ? bars("Probability", row.probabilities, { before: before?.probabilities, kind: "probability" }) : null,
    row.attention
      ? bars("Mixing weight", row.attention, { before: before?.attention, kind: "weight" })
      : make("p", { class: "hint" }, "This prompt mixes no sources."),
    make("p", { class: "hint" }, `${counted(row.input_tokens, "token")} in, ${row.output_tokens} out`),
  );
}
