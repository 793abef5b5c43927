// One picture that is to be added: its id, and what has become of it.

import { element } from "./element.js";
import { canBeId } from "./ids.js";
import { retryButton, whyNotChanged } from "./messages.js";
import { filePicture, picture } from "./pictures.js";
import { putImage, thumbnailOf } from "./service.js";

let number = 0; // of rows, for what labels them

export class Addition {
  /** `on` has the callbacks: left(addition) out, again(addition), used(imageId), renamed(). */
  constructor(file, imageId, limits, on) {
    Object.assign(this, { file, limits, on, added: false, replaces: false, renamed: false });
    this.name = file.name || "pasted image";
    this.line = element("p", { className: "line", id: `addition-${(number += 1)}` });
    this.input = element("input", {
      type: "text",
      required: true,
      maxLength: 512,
      value: imageId,
      autocomplete: "off",
      "aria-label": `Id of ${this.name}`,
      "aria-describedby": this.line.id,
    });
    this.input.addEventListener("input", () => {
      this.renamed = true;
      this.replaces = false;
      this.#say("");
      on.renamed();
    });
    this.remove = element(
      "button",
      {
        type: "button",
        className: "remove",
        "aria-label": `Leave ${this.name} out`,
        onclick: () => on.left(this),
      },
      "×",
    );
    this.node = element(
      "li",
      { className: "addition" },
      element("div", { className: "thumb" }, filePicture(file)),
      this.input,
      this.remove,
      this.line,
    );
  }

  get id() {
    return this.input.value.trim();
  }

  /** Another proposal, unless the user has said one. */
  propose(imageId) {
    if (!this.renamed && !this.added) this.input.value = imageId;
  }

  /** Whether the id is possible, beside those of the others. */
  check(others) {
    const twice = others.some((other) => other !== this && other.id === this.id);
    this.input.setCustomValidity(
      !canBeId(this.id)
        ? "This cannot be an id."
        : twice
          ? "Another of these pictures has this id."
          : "",
    );
  }

  /** The id is another image's, which is shown: the user says whether that one is to go. */
  askToReplace() {
    this.#say(
      "asks",
      element(
        "span",
        { className: "thumb" },
        picture(thumbnailOf(this.id), "The one that is there"),
      ),
      "The gallery has an image of this id. Give another id, or",
      element("button", { type: "button", onclick: () => this.#replace() }, "Replace it"),
    );
  }

  /** Send it. Never fails: what went wrong is shown beside it. */
  async send(labels) {
    this.#say("busy", "Adding…");
    this.input.disabled = this.remove.disabled = true;
    try {
      const { created } = await putImage(this.id, this.file, labels);
      this.added = true;
      this.remove.hidden = true;
      this.#say(
        "done",
        created ? "Added." : "Replaced.",
        element(
          "button",
          { type: "button", onclick: () => this.on.used(this.id) },
          "Use as reference",
        ),
      );
    } catch (problem) {
      this.input.disabled = this.remove.disabled = false;
      this.fail(problem);
    }
  }

  fail(problem) {
    const retry = retryButton(problem, () => this.on.again(this));
    this.#say("wrong", whyNotChanged(problem, this.limits), ...(retry ? [retry] : []));
  }

  /** The service would refuse the file. */
  refuse(words) {
    this.input.disabled = this.refused = true;
    this.#say("wrong", words);
  }

  #replace() {
    this.replaces = true;
    this.on.again(this);
  }

  #say(kind, ...words) {
    this.line.className = `line ${kind}`;
    this.line.replaceChildren(...words);
  }
}
