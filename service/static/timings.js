// Where the time went: a bar for each of the last answers, all to one scale.

const STAGES = {
  decode: "decode",
  preprocess: "prepare",
  queue: "wait",
  inference: "model",
  postprocess: "masks",
};
const MOST = 4;

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export class TimeSheet {
  #runs = [];
  #list;
  #stages;

  constructor(list, stages) {
    this.#list = list;
    this.#stages = stages;
  }

  clear() {
    this.#runs = [];
  }

  /**
   * `timings` as the service answers them. `replace`: it stands for the run before, as the frames of
   * a camera do.
   */
  add({ of, timings, note, replace = false }) {
    if (replace) this.#runs = [];
    this.#runs = [{ of, timings, note }, ...this.#runs].slice(0, MOST);
    const longest = Math.max(...this.#runs.map((run) => run.timings.total));
    this.#list.replaceChildren(...this.#runs.map((run) => row(run, longest)));
    this.#stages.replaceChildren(...Object.keys(STAGES).map((stage) => legend(stage, timings)));
  }
}

/** Whether the service still had the photo's features, so that it was not decoded. */
export const photoWasKnown = (timings) => timings.decode === 0;

export const total = (timings) => milliseconds(timings.total);

function row({ of, timings, note }, longest) {
  const line = document.createElement("p");
  line.append(element("span", "of", of), element("span", "took", milliseconds(timings.total)));
  const bar = element("div", "bar");
  bar.setAttribute("aria-hidden", "true");
  for (const stage of Object.keys(STAGES)) {
    const part = element("span", stage);
    part.style.width = `${(100 * timings[stage]) / longest}%`;
    bar.append(part);
  }
  const item = document.createElement("li");
  item.append(line, bar);
  if (note) item.append(element("p", "known", note));
  return item;
}

function legend(stage, timings) {
  const item = document.createElement("li");
  item.append(element("i", stage), `${STAGES[stage]} ${milliseconds(timings[stage])}`);
  return item;
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
