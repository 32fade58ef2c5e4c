/** One picture in the history: sends it to the server, and shows the answer and the heat map. */

import { Failure, curlCommand, infer, predict } from "./api.js";
import { draw, occlusion, place } from "./heat.js";
import { modelView, readBytes, shownPart } from "./view.js";

const TOP = 5; // classes that are listed
const LOOK = "What did the model look at?";
const TINY = 100; // pixels of width; smaller pictures are enlarged, and drawn without smoothing

export const percent = (share) =>
  new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(share);

export class Answer {
  /** page: has `model`, the answer of /model; `say(text)`, for screen readers; `answered(version)`; `failed(code)`. */
  constructor(file, threshold, page) {
    this.file = file;
    this.threshold = threshold;
    this.page = page;
    this.address = URL.createObjectURL(file);
    this.element = document.querySelector("#answer").content.firstElementChild.cloneNode(true);
    this.details = this.find("details");
    this.find(".file").textContent = file.name;
    this.find(".when").textContent = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    for (const image of this.element.querySelectorAll("img")) {
      image.addEventListener("error", () => this.element.classList.add("not-shown"));
      image.addEventListener("load", () => this.element.classList.toggle("tiny", image.naturalWidth < TINY));
      image.src = this.address;
    }
    this.find(".picture img").alt = file.name;
    this.find(".again").addEventListener("click", () => this.ask());
    this.find(".look").addEventListener("click", () => (this.find("canvas").hidden ? this.look() : this.hideHeat()));
    this.find(".copy").addEventListener("click", () => this.copy());
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  forget() {
    URL.revokeObjectURL(this.address);
    this.element.remove();
  }

  /** Asks the server for the answer. Shows a failure, and a button for trying again. */
  async ask() {
    this.failed = false;
    this.find(".again").hidden = this.find(".problem").hidden = true;
    this.find(".label").textContent = "waiting…";
    this.element.setAttribute("aria-busy", "true");
    try {
      const limit = this.page.model?.max_body;
      if (limit && this.file.size > limit) {
        throw new Failure("too_large", `The file is larger than ${Math.floor(limit / 2 ** 20)} MiB.`);
      }
      this.show(await predict(await readBytes(this.file), this.threshold, TOP));
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.fail(error);
    } finally {
      this.element.removeAttribute("aria-busy");
    }
  }

  /** Shows an answer: one `label`, or those `labels` whose probabilities reach their thresholds. */
  show({ label, labels, probabilities, unsure, version }) {
    const thresholds = this.page.model?.thresholds;
    const said = labels ? labels.join(", ") || "no label" : label;
    const share = labels ? "" : percent(probabilities[label]);
    this.find(".label").textContent = said;
    this.find(".share").textContent = share;
    this.find(".unsure").hidden = !unsure;
    this.element.classList.toggle("is-unsure", unsure);
    this.find(".when").textContent += `\nversion ${version}`;
    // Sorts again, because JavaScript objects list keys that are numbers first.
    const likeliest = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
    const bars = likeliest.map(([name, share]) => {
      const bar = document.createElement("li");
      for (const [kind, text] of [["name", name], ["bar", ""], ["share", percent(share)]]) {
        bar.append(Object.assign(document.createElement("span"), { className: kind, textContent: text }), " ");
      }
      bar.style.setProperty("--share", share);
      if (labels && thresholds) {
        const threshold = thresholds[this.page.model.classes.indexOf(name)];
        bar.style.setProperty("--threshold", threshold);
        bar.classList.add(share < threshold ? "below" : "reached");
        bar.title = `${name} is named from ${percent(threshold)} on`;
      }
      return bar;
    });
    this.find(".bars").replaceChildren(...bars);
    this.find(".curl").hidden = false;
    this.find(".curl code").textContent = curlCommand(this.file.name, this.threshold, TOP);
    this.find(".look").hidden = ![1, 3].includes(this.page.model?.channels ?? 3); // the view of others lacks channels
    this.page.say(`${this.file.name}: ${unsure ? "unsure, perhaps " : ""}${[said, share].filter(Boolean).join(", ")}`);
    this.page.answered(version);
  }

  fail({ code, message }) {
    this.failed = true;
    this.find(".label").textContent = "no answer";
    this.problem(message);
    this.find(".again").hidden = ["unsupported", "broken", "too_large"].includes(code);
    this.page.say(`${this.file.name}: ${message}`);
    this.page.failed(code);
  }

  problem(text) {
    this.find(".problem").textContent = text;
    this.find(".problem").hidden = false;
  }

  /** Computes and shows the heat map, by the version that is live now. */
  async look() {
    const progress = this.find("progress");
    const button = this.find(".look");
    const model = this.page.model;
    button.disabled = true;
    progress.value = 0;
    progress.hidden = false;
    this.find(".problem").hidden = true;
    try {
      const { pixels, png } = await modelView(this.file);
      const ask = (images) => {
        if (!this.element.isConnected) throw new Failure("cleared", "");
        return infer(model, images);
      };
      const report = (share) => (progress.value = share);
      const result = await occlusion(pixels, model, ask, report);
      this.showHeat(result, model, await this.underHeat(png, model));
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      const moved = error.code === "not_found";
      this.problem(moved ? "Another version answers now. Try again." : error.message);
      this.page.failed(error.code);
    } finally {
      button.disabled = false;
      progress.hidden = true;
    }
  }

  /** Returns the part of the shown picture that the model sees. Shows the model's view if the browser cannot show it. */
  async underHeat(png, model) {
    const image = this.find(".picture img");
    if (image.naturalWidth) return shownPart({ width: image.naturalWidth, height: image.naturalHeight }, model);
    URL.revokeObjectURL(this.address);
    this.address = URL.createObjectURL(png);
    this.element.classList.remove("not-shown");
    image.src = this.address;
    await image.decode();
    return { left: 0, top: 0, width: 1, height: 1 };
  }

  showHeat({ best, probability, heat }, model, shown) {
    const canvas = this.find("canvas");
    const caption = this.find("figcaption");
    const where = place(heat, model.size);
    const label = model.classes[best];
    draw(canvas, heat, model.size);
    for (const side of ["left", "top", "width", "height"]) canvas.style[side] = `${100 * shown[side]}%`;
    canvas.hidden = false;
    this.find(".look").textContent = "Hide the heat map";
    caption.textContent = where
      ? `The bright area, ${where}, counted for ${label} (${percent(probability)}, version ${model.version}).`
      : `No single area counted for ${label}: covering any of them does not make it less likely.`;
    canvas.setAttribute("aria-label", `Heat map. ${caption.textContent}`);
    caption.hidden = false;
    this.page.say(caption.textContent);
  }

  hideHeat() {
    this.find("canvas").hidden = this.find("figcaption").hidden = true;
    this.find(".look").textContent = LOOK;
  }

  async copy() {
    const code = this.find(".curl code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      this.page.say("Copied");
      this.find(".copy").textContent = "Copied";
    } catch {
      this.page.say("The command is selected: copy it with the keyboard"); // the clipboard needs HTTPS
    }
  }
}
