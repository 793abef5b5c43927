// Images beside the reference: the results become more like some of them, and less like others.

import { takeFiles, takeImages } from "./dropping.js";
import { byId, element } from "./element.js";
import { picture } from "./pictures.js";
import { thumbnailOf } from "./service.js";
import { isLost, keep, previewOf, refusal } from "./uploads.js";

const fold = byId("further");

let images = []; // as a query has them: {id} or {upload, name}, and `less`
let limits = null;
let onChange = null;

export const furtherImages = () => images;

/** Listen; `changed` is called after the user gave an image, turned one round or took one away. */
export function startFurther(info, changed) {
  limits = info.limits;
  onChange = changed;
  fold.hidden = most() < 1;
  const input = byId("further-file");
  input.accept = limits.formats.map((format) => `image/${format.toLowerCase()}`).join();
  input.addEventListener("change", () => {
    takeAll(input.files);
    input.value = "";
  });
  takeFiles(fold, takeAll, (element) => fold.contains(element));
  takeImages(fold, (imageId) => addFurther(imageId, false));
}

const most = () => (limits.images ?? 1) - 1; // one is the reference

function takeAll(files) {
  const problems = [];
  for (const file of files) {
    const problem = refusal(file, limits) || full();
    if (problem) problems.push(problem);
    else images = [...images, { ...keep(file), less: false }];
  }
  settle(problems[0]);
}

const full = () =>
  images.length < most() ? "" : `No more than ${most()} images beside the reference.`;

/** An image of the gallery, or the same one turned round. */
export function addFurther(imageId, less) {
  const others = images.filter(({ id }) => id !== imageId);
  const problem = others.length < images.length ? "" : full();
  if (!problem) images = [...others, { id: imageId, less }];
  settle(problem);
}

/** An image has gone from the gallery. */
export function dropFurther(imageId) {
  showFurther(images.filter(({ id }) => id !== imageId));
}

function settle(problem = "") {
  showFurther(images, problem);
  if (!problem) onChange();
}

/** Show `next` as the further images; files of another visit are gone. */
export function showFurther(next, problem = "") {
  images = next.filter((image) => !isLost(image));
  byId("further-list").replaceChildren(...images.map(item));
  byId("further-problem").textContent = problem;
  if (images.length > 0 || problem) fold.open = true;
}

function item(image, index) {
  const name = image.id ?? image.name;
  const change = (next, chosen) => {
    images = next;
    settle();
    const buttons = byId("further-list").querySelectorAll(chosen);
    (buttons[Math.min(index, buttons.length - 1)] ?? byId("further-file")).focus();
  };
  const turn = () =>
    change(
      images.map((one) => (one === image ? { ...one, less: !one.less } : one)),
      ".sign",
    );
  return element(
    "li",
    { className: image.less ? "less" : "" },
    picture(previewOf(image) ?? thumbnailOf(image.id), name),
    element(
      "button",
      {
        type: "button",
        className: "sign",
        title: "Turn it round",
        "aria-label": `${name}: ${image.less ? "less" : "more"} like this; turn it round`,
        onclick: turn,
      },
      image.less ? "− less like this" : "+ more like this",
    ),
    element(
      "button",
      {
        type: "button",
        className: "remove",
        "aria-label": `Take ${name} out`,
        onclick: () =>
          change(
            images.filter((one) => one !== image),
            ".remove",
          ),
      },
      byId("cross").content.cloneNode(true),
    ),
  );
}
