/** Runs the page: collects pictures, shows the live model, and manages the history. */

import { Answer, percent } from "./answer.js";
import { getModel, useToken } from "./api.js";
import { setUpCamera } from "./camera.js";

const AT_ONCE = 4; // requests
const HISTORY = 200; // maximum number of answers
const SPOKEN = 20; // maximum number of sentences for screen readers
const NAMED = 1000; // maximum number of class names
const LOOK_SECONDS = 3; // between two requests for the live model

const find = (selector) => document.querySelector(selector);
const answers = []; // the newest first
const waiting = [];
let running = 0;

const page = {
  model: null,
  /** Adds a sentence for screen readers, which read all additions, also several at once. */
  say(text) {
    const spoken = find("#spoken");
    spoken.append(Object.assign(document.createElement("p"), { textContent: text }));
    if (spoken.childElementCount > SPOKEN) spoken.firstElementChild.remove();
  },
  answered(version) {
    if (version !== page.model?.version) look();
  },
  failed(code) {
    if (["unreachable", "unauthorized", "not_found"].includes(code)) look();
  },
};

// Questions

function ask(files) {
  find("#remark").hidden = files.length > 0;
  if (!files.length) {
    find("#remark").textContent = "No picture was given. Links are not followed: save the picture first.";
    return;
  }
  const threshold = Math.min(100, Math.max(0, find("#threshold").valueAsNumber || 0)) / 100;
  for (const answer of answers) answer.details.open = false;
  const fresh = files.map((file) => new Answer(file, threshold, page));
  answers.unshift(...fresh);
  find("#history").prepend(...fresh.map((answer) => answer.element));
  for (const old of answers.splice(HISTORY)) old.forget();
  find("#nothing").hidden = true;
  find("#clear").hidden = false;
  waiting.push(...fresh);
  while (running < AT_ONCE && waiting.length) work();
}

async function work() {
  running += 1;
  try {
    while (waiting.length) await waiting.shift().ask();
  } finally {
    running -= 1;
  }
}

find("#files").addEventListener("change", (event) => {
  ask([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) ask([...event.clipboardData.files]);
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});

document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});

document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  ask([...event.dataTransfer.files]);
});

find("#clear").addEventListener("click", () => {
  waiting.length = 0;
  for (const answer of answers.splice(0)) answer.forget();
  find("#nothing").hidden = false;
  find("#clear").hidden = true;
  find("#answers").focus();
});

setUpCamera(ask);

// The model

/** Asks for the live model, shows a new one, and shows whether the server answers. */
async function look() {
  try {
    const model = await getModel();
    const moved = page.model && page.model.version !== model.version;
    if (page.model?.since !== model.since || moved) showModel(model);
    state("ready", `${model.name}, version ${model.version}`);
    if (moved) page.say(`Version ${model.version} answers now.`);
    find("#token").hidden = true;
  } catch (error) {
    find("#token").hidden = error.code !== "unauthorized";
    state(error.code === "unauthorized" ? "closed" : "gone", error.message);
  }
}

function state(kind, text) {
  const line = find("#state");
  if (line.textContent === text) return; // screen readers would repeat it every few seconds
  line.className = kind;
  line.textContent = text;
}

function showModel(model) {
  page.model = model;
  const { lineage, metrics } = model;
  const quality = (split) => {
    const [value, low, high] = ["", "_low", "_high"].map((end) => metrics[`${split}.${model.score}${end}`]);
    if (value === undefined) return "";
    return percent(value) + (low === undefined ? "" : ` (95 % interval ${percent(low)} to ${percent(high)})`);
  };
  const score = (model.score[0].toUpperCase() + model.score.slice(1)).replaceAll("_", " ");
  const images = lineage.training_images && `${Number(lineage.training_images).toLocaleString("en")} images`;
  const rows = {
    Name: model.name,
    Version: model.version,
    "Answers since": new Date(model.since).toLocaleString(),
    [`${score} on test images`]: quality("test") || "unknown",
    [`${score} on validation images`]: quality("validation"),
    "Trained on": [images, lineage.data && `of ${lineage.data}`].filter(Boolean).join(" ") || "unknown",
    "Data sha256": lineage.data_sha256?.slice(0, 12),
    "Model, precision": [lineage.model, lineage.precision].filter(Boolean).join(", "),
    "Input size": `${model.size.width} × ${model.size.height} pixels, cropped at the centre`,
    "Input channels": model.channels === 3 && model.depth === 8 ? "" : `${model.channels}, of ${model.depth} bits`,
    "git commit": lineage.git_commit?.slice(0, 12),
  };
  const entries = Object.entries(rows).filter(([, text]) => text);
  find("#model").replaceChildren(
    ...entries.flatMap(([name, text]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: text }),
    ]),
  );
  find("#classes summary").textContent = `${model.classes.length} classes`;
  const more = model.classes.length - NAMED;
  const rest = more > 0 ? `, and ${more.toLocaleString("en")} more: see /model` : "";
  find("#classes p").textContent = model.classes.slice(0, NAMED).join(", ") + rest;
  find("#classes").hidden = false;
}

find("#token").addEventListener("submit", async (event) => {
  event.preventDefault();
  useToken(find("#token-value").value.trim());
  await look();
  for (const answer of answers.filter((one) => one.failed)) answer.ask();
});

// Waits for each answer before the next request, and pauses while the page is hidden.
async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, 1000 * LOOK_SECONDS);
}

keepLooking();
