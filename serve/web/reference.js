// The reference image: dropped, pasted, chosen as a file, given by address, picked elsewhere, or
// none.

import { takeFiles, takeImages } from "./dropping.js";
import { byId, element } from "./element.js";
import { showIn } from "./pictures.js";
import { thumbnailOf } from "./service.js";
import { isLost, keep, previewOf, refusal } from "./uploads.js";

let image = null;
let limits = null;

export const referenceImage = () => image;

/**
 * Listen; `onChange` is called after the user gave a file or an address, or took the image away.
 */
export function startReference(info, onChange) {
  limits = info.limits;
  const change = (next) => {
    showReference(next);
    onChange();
  };
  const take = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
    const problem = file ? refusal(file, limits) : "That was not an image file.";
    if (problem) say(problem);
    else change(keep(file));
  };

  const input = byId("file");
  input.accept = limits.formats.map((format) => `image/${format.toLowerCase()}`).join();
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  byId("reference")
    .querySelector(".remove")
    .addEventListener("click", () => {
      change(null);
      input.focus();
    });
  takeFiles(byId("reference"), take);
  takeImages(byId("reference"), (id) => change({ id }));

  byId("preview").addEventListener("error", (event) => {
    event.target.hidden = true;
  }); // damaged, or TIFF
  byId("address").closest(".address").hidden = !info.image_url;
  byId("address").addEventListener("change", (event) => {
    if (event.target.validity.valid && event.target.value) change({ url: event.target.value });
    else if (event.target.validity.valid && image?.url !== undefined) change(null);
    else say("Give a whole address that begins with https://");
  });
}

/** Show `next` as the reference image. */
export function showReference(next) {
  image = next;
  const lost = isLost(image);
  const zone = byId("reference");
  const figure = zone.querySelector("figure");
  figure.hidden = image === null || lost;
  zone.querySelector(".empty").hidden = !figure.hidden;
  zone.querySelector(".empty p").textContent = lost
    ? `Give ${image.name} again`
    : "Drop or paste an image here";
  zone.classList.toggle("wanted", lost);
  zone.classList.remove("refused");
  figure.querySelector("figcaption").textContent = image?.id ?? image?.name ?? image?.url ?? "";
  showPreview(previewOf(image) ?? (image?.id !== undefined ? thumbnailOf(image.id) : null));
  byId("address").value = image?.url ?? "";
  say("");
}

function showPreview(address) {
  const shown = byId("preview");
  shown.hidden = address === null;
  showIn(shown, address);
}

/** Show the image as the one that the service refused. */
export const refuseReference = () => byId("reference").classList.add("refused");

function say(words) {
  byId("reference-problem").replaceChildren(words ? element("span", {}, words) : "");
}
