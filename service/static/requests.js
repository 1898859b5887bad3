// The service's own protocol, as docs/api.md has it. Addresses are relative, so that the page also
// works below a path of a proxy.

const KEY = "segvlm-key";

/** What went wrong, in words for the person at the page. */
export class Trouble extends Error {
  constructor(title, detail, { status = 0, retryAfter = 0 } = {}) {
    super(detail);
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const address = (path) => new URL(path, document.baseURI).href;

export const readKey = () => sessionStorage.getItem(KEY) ?? "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/**
 * Ask about one photo. Answers the service's document and what the way there and back took, in ms.
 * Throws Trouble, or an AbortError if `signal` says so.
 */
export async function segment({ photo, expressions, options, signal }) {
  const form = new FormData();
  form.append("image", photo.blob, photo.name);
  for (const expression of expressions) form.append("expression", expression);
  for (const [name, value] of Object.entries(options)) form.append(name, String(value));
  const key = readKey();
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const begun = performance.now();
  let response;
  try {
    response = await fetch(address("segment"), { method: "POST", body: form, headers, signal });
    if (response.ok) {
      const answer = await response.json();
      return { answer, roundTrip: performance.now() - begun };
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(
      "The service cannot be reached.",
      "Check that it runs and that you are connected, then try again.",
    );
  }
  throw await troubleOf(response);
}

async function troubleOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  const { status } = response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not the service's own words: something between it and this page answered.
  }
  const title = problem.title ?? `The answer was ${status} ${response.statusText}`.trim();
  const detail = problem.detail ?? "It came from something between this page and the service.";
  return new Trouble(sentence(title), sentence(detail), { status, retryAfter });
}

/** With a capital and a full stop. */
function sentence(words) {
  const text = words.trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
