// The steps of a search: each has another reference, chosen from the results before. `at` is the
// step that is shown.

import { byId, element } from "./element.js";
import { picture } from "./pictures.js";
import { isSame } from "./query.js";
import { thumbnailOf } from "./service.js";
import { previewOf } from "./uploads.js";

export const START = { steps: [], at: -1, histories: [] };

/**
 * The trail after `query` was asked: a change of the step shown, its next step where refined, else
 * a new trail.
 */
export function follow(trail, query, refined) {
  const current = trail.steps[trail.at];
  if (current && isSame(current, query)) return trail;
  const before = refined
    ? trail.steps.slice(0, trail.at + 1)
    : current && isSame(current.image, query.image)
      ? trail.steps.slice(0, trail.at)
      : [];
  const histories = (trail.histories ?? []).slice(0, before.length);
  return { steps: [...before, query], at: before.length, histories };
}

/** The history of the step before the one shown; undefined where it has none. */
export const earlier = ({ at, histories }) => histories?.[at - 1];

/** The trail with the history of the step shown. */
export function withHistory(trail, history) {
  const histories = [...(trail.histories ?? [])];
  histories[trail.at] = history;
  return { ...trail, histories };
}

/**
 * Show the trail; `pending` is a reference chosen from the results whose change has not been said
 * yet.
 */
export function showTrail(trail, pending, onGo) {
  const crumbs = trail.steps.map((query, index) => {
    const here = index === trail.at && !pending;
    const crumb = element(
      "button",
      { type: "button", onclick: () => onGo(index) },
      ...inside(query),
    );
    if (here) crumb.setAttribute("aria-current", "step");
    return element("li", { className: index > trail.at ? "later" : "" }, crumb);
  });
  if (pending) {
    const words = element("span", {}, "and now?");
    const thumb = thumbOf(pending);
    crumbs.splice(
      trail.at + 1,
      Infinity,
      element("li", {}, element("span", { className: "pending" }, thumb, words)),
    );
  }
  byId("trail").replaceChildren(element("ol", {}, ...crumbs));
  byId("trail").hidden = crumbs.length < 2;
}

function inside(query) {
  const words = query.text || (query.image ? "look-alikes" : "");
  return [query.image ? thumbOf(query.image) : null, element("span", {}, words)];
}

function thumbOf(image) {
  if (image.id !== undefined) return picture(thumbnailOf(image.id), image.id);
  const preview = previewOf(image);
  return preview ? picture(preview, image.name) : element("span", { className: "gone" }, "image");
}
