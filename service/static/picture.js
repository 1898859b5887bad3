// The canvas: the photo, the masks over it, and each mask's number.

import { css, inkOn } from "./palette.js";
import { paint } from "./masks.js";

const LEAST_RADIUS = 11; // of a number's disc, in pixels of the screen

export class Picture {
  #canvas;
  #context;
  #background = null;
  #finds = [];
  #look = { threshold: 0.5, opacity: 0.45 };
  #stressed = null;
  #due = false;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** `background`: what `drawImage` takes; the canvas gets its size. */
  show(background, { width, height }) {
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    this.#canvas.parentElement.style.setProperty("--ratio", `${width} / ${height}`);
    this.#background = background;
    this.redraw();
  }

  /** Hold on to the background no longer; what was drawn stays until there is another. */
  release() {
    this.#background = null;
  }

  describe(words) {
    this.#canvas.setAttribute("aria-label", words);
  }

  /** `finds`: {colour, number, shown, found}, where `found` is a map of `readMap` or null. */
  place(finds) {
    this.#finds = finds;
    this.redraw();
  }

  look(threshold, opacity) {
    this.#look = { threshold, opacity };
    this.redraw();
  }

  /** The others step back while one is pointed at. */
  stress(find) {
    this.#stressed = find;
    this.redraw();
  }

  /** Once for all that changed, with the screen's next frame. */
  redraw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.draw();
    });
  }

  draw() {
    if (!this.#background) return;
    const { width, height } = this.#canvas;
    this.#context.drawImage(this.#background, 0, 0, width, height);
    const visible = this.#finds.filter((find) => find.shown && find.found);
    for (const find of visible) {
      this.#context.globalAlpha = this.#stressed && find !== this.#stressed ? 0.2 : 1;
      this.#context.drawImage(this.#layer(find), 0, 0, width, height);
    }
    this.#context.globalAlpha = 1;
    for (const find of visible) if (find.layer.spot) this.#number(find);
  }

  async save() {
    this.draw();
    return new Promise((done) => this.#canvas.toBlob(done, "image/png"));
  }

  /** Painted again only if the mask, the threshold or the opacity is another. */
  #layer(find) {
    const { threshold, opacity } = this.#look;
    const made = { of: find.found, threshold, opacity };
    const old = find.layer;
    if (old && Object.keys(made).every((name) => old[name] === made[name])) return old.canvas;
    const canvas = old?.canvas ?? document.createElement("canvas");
    const spot = paint(canvas, find.found, threshold, find.colour, opacity);
    find.layer = { ...made, canvas, spot };
    return canvas;
  }

  #number({ colour, number, layer }) {
    const context = this.#context;
    const { width, height } = this.#canvas;
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = Math.min(clientWidth / width, clientHeight / height) || 1;
    const radius = LEAST_RADIUS / Math.min(1, scale);
    const x = Math.min(Math.max(layer.spot.x, radius * 1.3), width - radius * 1.3);
    const y = Math.min(Math.max(layer.spot.y, radius * 1.3), height - radius * 1.3);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = css(colour);
    context.fill();
    context.lineWidth = radius / 8;
    context.strokeStyle = inkOn(colour);
    context.stroke();
    context.fillStyle = inkOn(colour);
    context.font = `600 ${radius * 1.2}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(String(number), x, y + radius * 0.06);
  }
}
