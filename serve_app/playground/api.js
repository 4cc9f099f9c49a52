// The deployment, and the API key, which stays in this tab's session storage and in the header of each request.

const STORED = "attempt.key";

export const key = () => sessionStorage.getItem(STORED) ?? "";

export function keep(text) {
  if (text) sessionStorage.setItem(STORED, text);
  else sessionStorage.removeItem(STORED);
}

/** What the deployment refused, in its own words. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const address = (path) => new URL(path, document.baseURI).href;

/** Return the page at a path, and where the time went; with a body it is sent there. */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const start = performance.now();
  let response;
  let text;
  try {
    response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(`The deployment cannot be reached: ${error.message}.`, 0);
  }
  const page = parsed(text);
  if (!response.ok) {
    const given = page?.error?.message;
    const message = typeof given === "string" ? given : `the deployment answered ${response.status} without a reason`;
    throw new Refusal(message, response.status);
  }
  if (page === undefined) throw new Refusal("The answer is no JSON; something else than a deployment sent it.", 0);
  return { page, milliseconds: performance.now() - start, timing: parts(response.headers.get("Server-Timing")) };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Return [name, milliseconds] of each part of a Server-Timing header. */
function parts(header) {
  return (header ?? "").split(",").flatMap((part) => {
    const [name, ...facts] = part.trim().split(";");
    const duration = facts.map((fact) => fact.trim()).find((fact) => fact.startsWith("dur="));
    return duration === undefined ? [] : [[name, Number(duration.slice(4))]];
  });
}
