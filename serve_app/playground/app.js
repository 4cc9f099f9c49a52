// The page: its two views, the API key, and what can be asked.

import { call, keep, key } from "./api.js";
import * as ask from "./ask.js";
import * as heatmap from "./heatmap.js";
import { complain, counted, find } from "./view.js";

const VIEWS = ["ask", "heatmap"];

/** Show the view that the address names; the link to the content names none. */
function turn() {
  const named = location.hash.slice(1) || "ask";
  if (!VIEWS.includes(named) && VIEWS.some((view) => !find(view).hidden && find(`to-${view}`).ariaCurrent)) return;
  const chosen = VIEWS.includes(named) ? named : "ask";
  for (const view of VIEWS) {
    find(view).hidden = view !== chosen;
    if (view === chosen) find(`to-${view}`).setAttribute("aria-current", "page");
    else find(`to-${view}`).removeAttribute("aria-current");
  }
  complain();
}

async function learn() {
  const state = find("key-state");
  state.textContent = "";
  try {
    const { page } = await call("v1/tasks");
    ask.know(page.tasks);
    heatmap.know(page.tasks);
    complain(page.tasks.length ? "" : "The bank holds no task yet.");
    state.textContent = counted(page.tasks.length, "task");
  } catch (error) {
    ask.know([]);
    heatmap.know([]);
    const missing = error.status === 401 && !key();
    state.textContent = "";
    complain(missing ? "This deployment asks for an API key: give it above." : error.message);
  }
}

function useKey(text) {
  if (text && !/^[!-~]+$/.test(text)) {
    complain("The key has spaces or characters that no key has; give it as it was made.");
    return;
  }
  keep(text);
  find("key").value = "";
  find("key").placeholder = text ? "kept in this tab" : "";
  learn();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value.trim());
});
find("forget").addEventListener("click", () => useKey(""));
find("key").placeholder = key() ? "kept in this tab" : "";
window.addEventListener("hashchange", turn);

ask.start();
heatmap.start();
turn();
learn();
