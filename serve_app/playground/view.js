// What both views are made of. Text reaches the page as text alone.

/** Return an element; properties are attributes, but for listeners, which start with "on". */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const find = (id) => document.getElementById(id);

/** Show what went wrong, or nothing. */
export function complain(text) {
  const place = find("problem");
  place.textContent = text ?? "";
  place.hidden = !text;
}

/** Return a table of shares: a bar and a number each, and what changed since `before`. */
export function bars(title, shares, { before, kind } = {}) {
  const most = Math.max(...Object.values(shares));
  const rows = Object.entries(shares).map(([name, share]) => {
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(Math.min(1, Math.max(0, share))));
    const old = before?.[name];
    return make(
      "tr",
      { class: share === most ? "most" : undefined },
      make("th", { scope: "row" }, name),
      make("td", { class: "track" }, bar),
      make("td", { class: "number" }, share.toFixed(2)),
      before ? make("td", { class: "number change" }, old === undefined ? "new" : signed(share - old)) : null,
    );
  });
  const head = make(
    "tr",
    { class: "unseen" },
    make("th", { scope: "col" }, "name"),
    make("td", {}),
    make("th", { scope: "col" }, "share"),
    before ? make("th", { scope: "col" }, "against the first version") : null,
  );
  const columns = ["names", "tracks", "numbers", ...(before ? ["changes"] : [])].map((name) => make("col", { class: name }));
  return make("table", { class: `bars ${kind}` }, make("caption", {}, title), make("colgroup", {}, ...columns), make("thead", {}, head), make("tbody", {}, ...rows));
}

function signed(change) {
  const text = Math.abs(change).toFixed(2);
  if (text === "0.00") return "±0.00";
  return change > 0 ? `+${text}` : `−${text}`;
}

export const clock = (milliseconds) =>
  milliseconds < 1000 ? `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
