// What the page says: one line of what goes on, and a box for what went wrong.

import { Trouble } from "./requests.js";

const at = (id) => document.getElementById(id);
let retry = null;

export function say(words) {
  at("status").textContent = words;
}

/** Show an error. `again`: what its button does; without it there is no button. */
export function tell(error, again = null) {
  if (error.name === "AbortError") return;
  const trouble = error instanceof Trouble
    ? error
    : new Trouble("The page has a fault.", `${error.message}. Reload it and try again.`);
  if (trouble !== error) console.error(error);
  const wait = trouble.retryAfter ? ` You can try again in ${trouble.retryAfter} s.` : "";
  at("trouble-title").textContent = trouble.title;
  at("trouble-detail").textContent = trouble.detail + wait;
  retry = again;
  at("again").hidden = again === null;
  at("trouble").hidden = false;
  say("");
  if (trouble.status === 401) at("access").open = true;
}

export function calm() {
  at("trouble").hidden = true;
  retry = null;
}

at("again").addEventListener("click", () => retry?.());
at("dismiss").addEventListener("click", () => {
  calm();
  at("expression").focus();
});
