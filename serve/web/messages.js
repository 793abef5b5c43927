// Clear words for what went wrong and for what is not there.

import { count, element } from "./element.js";

const REASONS = {
  empty: () => ["This file is empty", "Choose another image."],
  not_an_image: (limits) => [
    "This file is not an image",
    `The service reads ${list(limits.formats)}.`,
  ],
  truncated: () => [
    "This image is damaged",
    "It cannot be decoded whole. Save it anew or choose another.",
  ],
  too_small: (limits) => [
    "This image is too small",
    `Each side needs at least ${count(limits.image_min_side, "pixel")}.`,
  ],
  too_large: (limits, problem) =>
    problem.detail.startsWith("image_url")
      ? ["The image at this address is too large", tooLarge(limits)]
      : [
          "This image has too many pixels",
          `It may have at most ${Math.floor(limits.image_pixels / 1e6)} million. ` +
            "Make it smaller, or choose another.",
        ],
  missing: () => [
    "This image's file is gone",
    "The gallery knows the image, but cannot read it. Choose another.",
  ],
};
const ELSEWHERE = () => ["There is no such gallery for you", "Choose another above, or another key."];
Object.assign(REASONS, { no_gallery: ELSEWHERE, other_gallery: ELSEWHERE });
const STATUS = {
  0: () => [
    "The service cannot be reached",
    "Check that it is running and that you are connected.",
  ],
  403: () => ["This address is not allowed", "Save the image and choose its file instead."],
  404: () => [
    "This image is not in the gallery",
    "It may have been removed. Choose another reference.",
  ],
  409: () => [
    "The steps before are of another model",
    "The service has changed since. Leave out earlier steps of the trail, or begin a new search.",
  ],
  413: (limits) => ["This image is too large", tooLarge(limits)],
  415: (limits) => [
    "This kind of file cannot be searched with",
    `The service reads ${list(limits.formats)}.`,
  ],
  401: () => ["The service wants an API key", "Whoever runs it gives you one."],
  500: () => ["The service failed on this search", "Its log says why."],
  503: () => ["The service is busy", "It has more searches than it can answer at once."],
};
Object.assign(STATUS, { 429: STATUS[503], 502: STATUS[0], 504: STATUS[0] });
const CHANGE = {
  403: ["You may not change the gallery", ""],
  500: ["The service failed on this", "Its log says why."],
  503: ["The service cannot do this now", "Try again soon."],
  507: ["The gallery's disk is full", "Nothing was changed."],
};
Object.assign(CHANGE, { 429: CHANGE[503] });
const UNCLEAR = () => ["This search cannot be answered", "Something in it needs a change."];
const NO_RETRY = new Set([400, 403, 404, 409, 413, 415, 422]);

const inMB = (bytes) => (bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 });
export const tooLarge = (limits) => `A file may have at most ${inMB(limits.body_bytes)} MB.`;
export const together = (limits) =>
  `All files of a search with several images may have ${inMB((limits.body_bytes * 3) / 4)} MB ` +
  "together. Take smaller ones, or leave some out.";
export const list = (words) => new Intl.ListFormat("en", { type: "disjunction" }).format(words);

/** Show in `target` what went wrong, with a way on: `onRetry` where trying again may help. */
export function showProblem(target, problem, limits, onRetry) {
  const words =
    REASONS[problem.reason] ??
    STATUS[problem.status] ??
    (problem.status >= 500 ? STATUS[500] : UNCLEAR);
  const [title, advice] = words(limits, problem);
  const said = problem.detail
    ? element(
        "details",
        { open: words === UNCLEAR },
        element("summary", {}, "What the service said"),
        element("p", {}, problem.detail),
      )
    : null;
  const retry = retryButton(problem, onRetry);
  show(target, "wrong", title, advice, retry, said);
}

/** Show in `target` that something is not there, with a button that leads on where there is one. */
export function showEmpty(target, title, advice, action = null, onAction = null) {
  const button = action ? element("button", { type: "button", onclick: onAction }, action) : null;
  show(target, "nothing", title, advice, button);
}

function show(target, kind, title, advice, ...rest) {
  target.replaceChildren(
    element(
      "div",
      { className: `message ${kind}` },
      element("h2", {}, title),
      element("p", {}, advice),
      ...rest,
    ),
  );
}

/** Why a change of the gallery was not made, in a sentence or two. */
export function whyNotChanged(problem, limits) {
  const reason = REASONS[problem.reason]?.(limits, problem);
  if (reason) return reason.join(". ");
  const [title, advice] =
    CHANGE[problem.status] ??
    STATUS[problem.status]?.(limits) ??
    (problem.status >= 500 ? CHANGE[500] : ["This is not possible", ""]);
  return problem.detail
    ? `${title}: ${problem.detail}.`
    : [title, advice].filter(Boolean).join(". ");
}

/**
 * Counts down what the service asked to wait; until then it cannot be pressed. None where trying
 * again is no use.
 */
export function retryButton(problem, onRetry) {
  if (NO_RETRY.has(problem.status)) return null;
  const button = element("button", { type: "button", onclick: onRetry });
  const tick = (left) => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) setTimeout(tick, 1000, left - 1);
  };
  tick(Math.ceil(problem.retryAfter));
  return button;
}
