// The page: a photo or the camera, what is asked of it, and what the service answered.

import { CameraStream } from "./camera.js";
import { cocoDocument, fileName, jsonBlob, maskPng, rleDocument, save } from "./downloads.js";
import { Finds, describe } from "./finds.js";
import { readMap } from "./masks.js";
import { readPhoto, readSample, shownSize } from "./photo.js";
import { Picture } from "./picture.js";
import { keepKey, readKey, segment } from "./requests.js";
import { curlSnippet, pythonSnippet } from "./snippets.js";
import { TimeSheet, photoWasKnown, total } from "./timings.js";
import { calm, say, tell } from "./words.js";

const at = (id) => document.getElementById(id);
const facts = document.documentElement.dataset;
const ownThreshold = Number(facts.threshold); // the model's
const ownPlace = Object.assign(at("threshold").cloneNode(), { value: facts.threshold }).value;

const picture = new Picture(at("picture"));
const times = new TimeSheet(at("runs"), at("stages"));
const finds = new Finds(at("finds"), {
  change: refresh,
  remove: forgetFind,
  stress: (find) => picture.stress(find),
  png: (find) => download(async () => [
    await maskPng(photo, find.expression, threshold()),
    fileName(photo, find.expression, "png"),
  ]),
  again: (find) => ask([find]),
});

let photo = null; // of readPhoto, and {sample, tries}
let opening = Promise.resolve(); // the photo that is on its way
let camera = null;
let pending = new AbortController(); // of all that is asked about this photo
let asked = []; // expressions of earlier photos, the newest first
let offered = null; // of them and the sample's, what the buttons say now
let frame = null; // of the camera, the one that is shown

/** The slider's steps may miss the model's own threshold; the nearest of them stands for it. */
function threshold() {
  const { value } = at("threshold");
  return value === ownPlace ? ownThreshold : Number(value);
}

const opacity = () => Number(at("opacity").value);

// -- what is shown ------------------------------------------------------------------------------

function refresh() {
  const live = camera !== null;
  picture.place(finds.all);
  picture.look(live ? 0.5 : threshold(), opacity()); // a streamed mask is 0 or 255
  finds.tell(threshold(), live);
  at("threshold-value").textContent = threshold().toFixed(2);
  at("opacity-value").textContent = `${Math.round(100 * opacity())} %`;
  const shown = finds.answered.length > 0;
  at("time").hidden = !shown;
  at("download").hidden = !shown;
  at("save-rle").hidden = at("save-coco").hidden = live;
  at("code").hidden = !shown || live;
  if (shown && !live) showSnippet();
  showTries();
  const found = finds.answered.map((find) => find.expression).join(", ");
  const subject = live ? "The camera" : photo ? photo.name : "No photo yet";
  picture.describe(found ? `${subject}; masks of: ${found}` : subject);
}

function showTries() {
  const tries = photo || camera ? [...(photo?.tries ?? []), ...asked] : [];
  const open = [...new Set(tries)].filter((words) => !finds.named(words)).slice(0, 6);
  if (open.join("\n") === offered) return; // made anew, they would lose the focus
  offered = open.join("\n");
  at("tries").hidden = open.length === 0;
  at("tries").replaceChildren(...open.map((words) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", () => find(words));
    return button;
  }));
}

function showSnippet() {
  const language = document.querySelector("input[name=language]:checked").value;
  const write = language === "curl" ? curlSnippet : pythonSnippet;
  at("snippet").textContent = write({
    name: photo.name,
    sample: photo.sample,
    expressions: finds.answered.map((find) => find.expression),
    threshold: threshold() === ownThreshold ? null : threshold(),
  });
}

// -- a photo ------------------------------------------------------------------------------------

/** Resolves when the photo is shown, or its fault told; who asks meanwhile waits for it. */
function open(read, extra = {}) {
  opening = load(read, extra);
  return opening;
}

async function load(read, extra) {
  calm();
  try {
    const next = await read();
    stopCamera();
    startAfresh();
    photo = { sample: false, tries: [], ...next, ...extra };
  } catch (error) {
    tell(error);
    return;
  }
  at("frame").classList.remove("empty");
  at("invitation").hidden = true;
  at("caption").textContent = `${photo.name}, ${photo.width} × ${photo.height}`;
  picture.show(photo.bitmap, photo.shown);
  say("Type what to find in it.");
  refresh();
  if (matchMedia("(hover: hover)").matches) at("expression").focus(); // no keyboard jumps up
}

/** Another picture: what was found in the last one is of no use any more. */
function startAfresh() {
  pending.abort();
  pending = new AbortController();
  clearFinds();
  times.clear();
  picture.release();
  photo?.bitmap.close();
  photo = null;
}

function clearFinds() {
  asked = [...new Set([...finds.expressions, ...asked])];
  finds.clear();
}

function openFiles(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) open(() => readPhoto(file, file.name || "pasted.png"));
}

// -- asking -------------------------------------------------------------------------------------

async function find(words) {
  const expression = words.trim().replace(/\s+/g, " ");
  if (!expression) return;
  await opening;
  if (!photo && !camera) {
    say("Choose a photo or a sample first.");
    return;
  }
  if (finds.named(expression)) {
    say(`“${expression}” is in the list already.`);
    return;
  }
  if (finds.all.length >= Number(facts.maxExpressions)) {
    say(`The service takes ${facts.maxExpressions} expressions at a time. Remove one first.`);
    return;
  }
  calm();
  const added = finds.add(expression);
  if (camera) {
    askCamera();
    say(`Looking for ${expression}.`);
    refresh();
  } else {
    ask([added]);
  }
}

async function ask(wanted) {
  for (const each of wanted) finds.wait(each);
  calm();
  const of = wanted.map((each) => each.expression).join(", ");
  say(`Looking for ${of}…`);
  refresh();
  const { signal } = pending;
  const subject = photo;
  try {
    const { answer, roundTrip } = await segment({
      photo: subject,
      expressions: wanted.map((each) => each.expression),
      options: { include_probability: true, format: "none" },
      signal,
    });
    const maps = await Promise.all(
      answer.results.map((result) => readMap(result.probability.data, subject.shown)),
    );
    if (signal.aborted) return;
    wanted.forEach((each, index) => (
      finds.answer(each, maps[index], answer.results[index], ownThreshold)
    ));
    const known = photoWasKnown(answer.timings);
    const note = known ? "Photo already known, not encoded again." : "";
    times.add({ of, timings: answer.timings, note });
    const told = wanted.map((each) => `${each.expression}: ${describe(each, threshold())}`);
    const took = `${total(answer.timings)} in the service, ${Math.round(roundTrip)} ms in all`;
    say(`${told.join("; ")}. ${took}.`);
  } catch (error) {
    if (signal.aborted) return;
    for (const each of wanted) finds.fail(each);
    tell(error, () => ask(wanted.filter((each) => finds.all.includes(each))));
  }
  refresh();
}

function forgetFind(gone) {
  if (!finds.all.length) at("expression").focus();
  picture.stress(null);
  asked = [...new Set([gone.expression, ...asked])];
  if (camera) askCamera();
  say(`Removed “${gone.expression}”.`);
  refresh();
}

// -- the camera ---------------------------------------------------------------------------------

async function startCamera() {
  calm();
  const stream = new CameraStream({
    onFrame: showFrame,
    onPreview: (video, size) => picture.show(video, shownSize(size.width, size.height)),
    onTrouble: (trouble) => tell(trouble),
    onEnd: (trouble) => {
      endCamera();
      if (trouble) tell(trouble, startCamera);
    },
  });
  say("Opening the camera…");
  at("camera").disabled = true;
  try {
    await stream.start();
  } catch (error) {
    tell(error, startCamera); // the photo stays
    return;
  } finally {
    at("camera").disabled = false;
  }
  const kept = finds.expressions;
  startAfresh();
  camera = stream;
  for (const expression of kept) finds.add(expression);
  at("camera").setAttribute("aria-pressed", "true");
  at("keep").hidden = false;
  at("frame").classList.remove("empty");
  at("invitation").hidden = true;
  at("caption").textContent = "Camera";
  say(kept.length ? "" : "Type what to find in front of the camera.");
  askCamera();
  refresh();
}

function askCamera() {
  camera.ask({ expressions: finds.expressions, threshold: threshold() });
}

async function showFrame(bitmap, message, { rate, lag, dropped }) {
  const stream = camera;
  const shown = shownSize(bitmap.width, bitmap.height);
  const results = message.results.filter(({ expression, mask }) => finds.named(expression) && mask);
  const maps = await Promise.all(results.map(({ mask }) => readMap(mask.data, shown)));
  if (camera !== stream) return;
  results.forEach((result, index) => {
    const named = finds.named(result.expression);
    if (named) finds.answer(named, maps[index], result, threshold());
  });
  times.add({
    of: `${rate.toFixed(0)} frames/s, ${Math.round(lag)} ms behind`,
    timings: message.timings,
    note: dropped ? `${dropped} frames left out, so that the newest is shown.` : "",
    replace: true,
  });
  picture.show(bitmap, shown);
  frame?.close();
  frame = bitmap;
  at("caption").textContent = `Camera, ${bitmap.width} × ${bitmap.height}`;
  refresh();
}

function stopCamera() {
  camera?.stop();
}

function endCamera() {
  camera = null;
  clearFinds();
  at("camera").setAttribute("aria-pressed", "false");
  at("keep").hidden = true;
  at("frame").classList.add("empty");
  at("invitation").hidden = false;
  at("caption").textContent = "";
  say("Choose a photo or a sample to begin.");
  refresh();
}

async function keepFrame() {
  const tries = finds.expressions;
  finds.clear(); // the photo without masks
  picture.place([]);
  const kept = await picture.save();
  await open(() => readPhoto(kept, "camera.png"), { tries });
}

// -- downloads ----------------------------------------------------------------------------------

async function download(make) {
  calm();
  try {
    save(...(await make()));
  } catch (error) {
    tell(error, () => download(make));
  }
}

const found = () => finds.answered.map((each) => each.expression);

async function copySnippet() {
  const text = at("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(at("snippet"));
    say("The browser does not allow copying here; it is marked, press Ctrl+C.");
  }
}

// -- what a person does -------------------------------------------------------------------------

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  find(at("expression").value);
  at("expression").value = "";
});
at("file").addEventListener("change", ({ target }) => {
  openFiles(target.files);
  target.value = ""; // the same file may be chosen again
});
for (const button of document.querySelectorAll("[data-sample]")) {
  const { sample, tries } = button.dataset;
  const extra = { sample: true, tries: tries.split("|") };
  button.addEventListener("click", () => open(() => readSample(sample), extra));
}
at("frame").addEventListener("click", ({ currentTarget }) => {
  if (currentTarget.classList.contains("empty")) at("file").click();
});
at("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
at("keep").addEventListener("click", keepFrame);
for (const slider of [at("threshold"), at("opacity")]) slider.addEventListener("input", refresh);
at("threshold").addEventListener("change", () => camera && askCamera());
at("save-picture").addEventListener("click", () => download(async () => (
  [await picture.save(), fileName(photo ?? { name: "camera" }, "masks", "png")]
)));
at("save-rle").addEventListener("click", () => download(async () => [
  jsonBlob(await rleDocument(photo, found(), threshold(), ownThreshold)), fileName(photo, "rle", "json"),
]));
at("save-coco").addEventListener("click", () => download(async () => [
  jsonBlob(await cocoDocument(photo, found(), threshold(), ownThreshold)), fileName(photo, "coco", "json"),
]));
at("copy").addEventListener("click", copySnippet);
for (const choice of document.querySelectorAll("input[name=language]")) {
  choice.addEventListener("change", showSnippet);
}
at("unlock").addEventListener("submit", (event) => event.preventDefault());
at("key").value = readKey();
at("key").addEventListener("input", ({ target }) => {
  keepKey(target.value.trim());
  if (!at("code").hidden) showSnippet();
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return; // text goes where the cursor is
  event.preventDefault();
  openFiles(event.clipboardData.files);
});
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault());
}
at("frame").addEventListener("dragover", () => at("frame").classList.add("over"));
at("frame").addEventListener("dragleave", () => at("frame").classList.remove("over"));
document.addEventListener("drop", ({ dataTransfer }) => {
  at("frame").classList.remove("over");
  if (dataTransfer.files.length) openFiles(dataTransfer.files);
  else say("That was a link, not a file. Save the picture or copy it, then drop or paste it.");
});
refresh();
