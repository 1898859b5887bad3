// Frames of the camera over the WebSocket /stream, version 1 (docs/api.md). Each answer is shown on
// the very frame it belongs to.

import { Trouble, address, readKey } from "./requests.js";

const LONGEST_SIDE = 640; // the model sees less than that
const QUALITY = 0.85;
const IN_FLIGHT = 2; // one travels while the other is worked on
const RATE_OVER = 2000; // ms

/** Calls `onFrame(bitmap, message)` for each answer and `onEnd(Trouble | null)` once. */
export class CameraStream {
  #onFrame;
  #onPreview;
  #onTrouble;
  #onEnd;
  #media = null;
  #socket = null;
  #video = document.createElement("video");
  #canvas = document.createElement("canvas");
  #question = null;
  #ready = false;
  #ended = false;
  #sending = false;
  #sent = 0;
  #waiting = new Map(); // frame number -> its picture and when it was taken
  #answered = [];
  #dropped = 0;

  constructor({ onFrame, onPreview, onTrouble, onEnd }) {
    this.#onFrame = onFrame;
    this.#onPreview = onPreview;
    this.#onTrouble = onTrouble;
    this.#onEnd = onEnd;
  }

  /** Resolves once frames can be sent. Throws Trouble if there is no camera or no stream. */
  async start() {
    try {
      this.#media = await openCamera();
      this.#media.getVideoTracks()[0].addEventListener("ended", () => {
        this.stop(new Trouble("The camera has ended.", "Start it again if it is connected."));
      });
      this.#video.muted = true;
      this.#video.playsInline = true;
      this.#video.srcObject = this.#media;
      await this.#video.play();
      this.#socket = await openStream();
    } catch (error) {
      this.#release();
      throw error;
    }
    this.#socket.addEventListener("message", ({ data }) => this.#receive(JSON.parse(data)));
    this.#socket.addEventListener("close", (event) => this.stop(troubleOf(event)));
    this.#everyFrame();
  }

  /** `question`: {expressions, threshold}; nothing is sent while there are no expressions. */
  ask(question) {
    this.#question = question;
    this.#configure();
  }

  stop(trouble = null) {
    if (this.#ended) return;
    this.#release();
    this.#onEnd(trouble);
  }

  #release() {
    this.#ended = true;
    for (const track of this.#media?.getTracks() ?? []) track.stop();
    this.#video.srcObject = null;
    this.#socket?.close(1000);
    for (const { bitmap } of this.#waiting.values()) bitmap.close();
    this.#waiting.clear();
  }

  #configure() {
    if (this.#socket?.readyState !== WebSocket.OPEN || !this.#question?.expressions.length) return;
    this.#socket.send(JSON.stringify({ ...this.#question, format: "png", newest: true }));
  }

  #receive(message) {
    if (message.type === "ready") this.#ready = true;
    else if (message.type === "result") this.#take(message);
    else if (message.type === "error") {
      this.#forget(message.frame);
      this.#onTrouble(new Trouble(message.title ?? "A frame failed.", message.detail ?? ""));
    }
  }

  #take(message) {
    for (const frame of [...this.#waiting.keys()]) if (frame < message.frame) this.#forget(frame);
    const taken = this.#waiting.get(message.frame);
    if (!taken) return;
    this.#waiting.delete(message.frame);
    const now = performance.now();
    this.#dropped += message.dropped ?? 0;
    this.#answered = [...this.#answered.filter((time) => now - time < RATE_OVER), now];
    const span = now - this.#answered[0];
    const rate = span ? (1000 * (this.#answered.length - 1)) / span : 0;
    this.#onFrame(taken.bitmap, message, { rate, lag: now - taken.at, dropped: this.#dropped });
  }

  #forget(frame) {
    this.#waiting.get(frame)?.bitmap.close();
    this.#waiting.delete(frame);
  }

  #everyFrame() {
    if (this.#ended) return;
    this.#frame();
    if (this.#video.requestVideoFrameCallback) {
      this.#video.requestVideoFrameCallback(() => this.#everyFrame());
    } else {
      requestAnimationFrame(() => this.#everyFrame());
    }
  }

  async #frame() {
    const { videoWidth, videoHeight } = this.#video;
    if (!videoWidth) return;
    if (!this.#question?.expressions.length || !this.#ready) {
      this.#onPreview(this.#video, { width: videoWidth, height: videoHeight });
      return;
    }
    if (this.#sending || this.#waiting.size >= IN_FLIGHT) return;
    this.#sending = true;
    try {
      await this.#send(videoWidth, videoHeight);
    } finally {
      this.#sending = false;
    }
  }

  async #send(videoWidth, videoHeight) {
    const scale = Math.min(1, LONGEST_SIDE / Math.max(videoWidth, videoHeight));
    this.#canvas.width = Math.round(videoWidth * scale);
    this.#canvas.height = Math.round(videoHeight * scale);
    const at = performance.now();
    const context = this.#canvas.getContext("2d");
    context.drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
    const bitmap = await createImageBitmap(this.#canvas);
    const file = await new Promise((done) => this.#canvas.toBlob(done, "image/jpeg", QUALITY));
    if (this.#ended || this.#socket.readyState !== WebSocket.OPEN) {
      bitmap.close();
      return;
    }
    this.#socket.send(file);
    this.#waiting.set(this.#sent, { bitmap, at });
    this.#sent += 1;
  }
}

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Trouble(
      "The browser does not lend this page the camera.",
      "It does so only over https or on localhost. Open the page that way.",
    );
  }
  const video = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: false, video });
  } catch (error) {
    if (error.name === "NotAllowedError") {
      const remedy = "Allow it for this page in the browser's settings, then try again.";
      throw new Trouble("The camera was not allowed.", remedy);
    }
    const remedy = "Connect one, or close the program that holds it, then try again.";
    throw new Trouble("No camera can be used.", remedy);
  }
}

/** A browser does not say why a WebSocket was refused. */
function openStream() {
  const place = address("stream").replace(/^http/, "ws");
  const key = readKey();
  const socket = new WebSocket(place, key ? ["segvlm.v1", `segvlm.key.${base64url(key)}`] : []);
  return new Promise((done, fail) => {
    socket.addEventListener("open", () => done(socket), { once: true });
    socket.addEventListener("error", () => fail(new Trouble(
      "The stream cannot be opened.",
      "This service may have no /stream, may be stopping, or may want an API key. " +
        "Photos work without it.",
    )), { once: true });
  });
}

function troubleOf({ code, reason }) {
  const told = reason ? `It says: ${reason}.` : `Its code is ${code}.`;
  if (code === 1001 || code === 1012) {
    return new Trouble("The service is stopping.", `${told} Start the camera again in a moment.`);
  }
  return new Trouble("The service has ended the stream.", `${told} Start the camera again.`);
}

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  const encoded = btoa(String.fromCharCode(...bytes));
  return encoded.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
