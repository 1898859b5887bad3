// The list of what was asked: one row for each expression, with its mask's colour and number.

import { colourOf, css, freeNumber, inkOn } from "./palette.js";
import { areaAbove } from "./masks.js";

const percent = (part) => {
  const value = 100 * part;
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} %`;
};

/** Rows in the order in which they were asked. `on`: {change, remove, png, again, stress}. */
export class Finds {
  #list;
  #on;
  all = [];

  constructor(list, on) {
    this.#list = list;
    this.#on = on;
  }

  get answered() {
    return this.all.filter((find) => find.found);
  }

  get expressions() {
    return this.all.map((find) => find.expression);
  }

  named(expression) {
    return this.all.find((find) => find.expression === expression);
  }

  add(expression) {
    const number = freeNumber(this.all.map((find) => find.number));
    const colour = colourOf(number);
    const find = { expression, number, colour, shown: true, found: null, state: "waiting" };
    this.all.push(find);
    this.#list.append(this.#row(find));
    return find;
  }

  /**
   * `found`: what `readMap` answers; `result`: the service's, which it made with `threshold`; it may
   * be of a camera's frame.
   */
  answer(find, found, result, threshold) {
    Object.assign(find, { found, result, threshold, state: "found" });
  }

  fail(find) {
    find.state = "failed";
  }

  wait(find) {
    find.state = "waiting";
  }

  remove(find) {
    const index = this.all.indexOf(find);
    if (index < 0) return;
    this.all.splice(index, 1);
    find.row.remove();
    const next = this.all[index] ?? this.all[index - 1];
    next?.row.querySelector(".remove").focus();
    this.#on.remove(find);
  }

  clear() {
    this.all = [];
    this.#list.replaceChildren();
  }

  /** Say of each row what it holds at `threshold`; `live`: masks come finished from a stream. */
  tell(threshold, live = false) {
    for (const find of this.all) {
      find.row.className = find.state;
      find.fact.textContent = fact(find, threshold, live);
      find.png.hidden = live || find.state !== "found";
      find.retry.hidden = find.state !== "failed";
    }
  }

  #row(find) {
    const { expression, colour, number } = find;
    const row = document.createElement("li");
    row.style.setProperty("--mask", css(colour));
    row.style.setProperty("--on-mask", inkOn(colour));
    const swatch = document.createElement("label");
    swatch.className = "swatch";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.setAttribute("aria-label", `Show ${expression}`);
    box.addEventListener("change", () => {
      find.shown = box.checked;
      this.#on.change();
    });
    const digit = document.createElement("span");
    digit.textContent = String(number);
    digit.setAttribute("aria-hidden", "true");
    swatch.append(box, digit);
    const text = document.createElement("div");
    const name = document.createElement("p");
    name.className = "name";
    name.textContent = expression;
    find.fact = document.createElement("p");
    find.fact.className = "fact";
    text.append(name, find.fact);
    find.png = button("PNG", `Download the mask of ${expression} as PNG`, () => this.#on.png(find));
    find.retry = button("Again", `Ask for ${expression} again`, () => this.#on.again(find));
    const remove = button("×", `Remove ${expression}`, () => this.remove(find));
    remove.classList.add("remove");
    const actions = document.createElement("div");
    actions.append(find.png, find.retry);
    row.append(swatch, text, actions, remove);
    for (const kind of ["mouseenter", "focusin"]) {
      row.addEventListener(kind, () => this.#on.stress(find));
    }
    for (const kind of ["mouseleave", "focusout"]) {
      row.addEventListener(kind, () => this.#on.stress(null));
    }
    find.row = row;
    return row;
  }
}

/** A score belongs to the mask that the service answered; of another threshold's there is none. */
export function describe(find, threshold, live = false) {
  const { counts } = find.found;
  const { area, score } = find.result;
  const pixels = counts.reduce((sum, count) => sum + count, 0);
  const part = (inside) => `${percent(inside / pixels)} of the photo`;
  const own = live || threshold === find.threshold;
  const inside = own ? area : areaAbove(counts, threshold);
  if (!inside) return "nothing above the threshold";
  if (own) return `score ${score.toFixed(2)}, ${part(inside)}`;
  return `${part(inside)}; its score is known at threshold ${find.threshold.toFixed(2)} only`;
}

function fact(find, threshold, live) {
  if (find.state === "waiting" && !find.found) return "…";
  if (find.state === "failed") return "not answered";
  const cut = find.result.truncated ? "; too long, its end was not read" : "";
  return describe(find, threshold, live) + cut;
}

function button(text, label, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", onClick);
  return made;
}
