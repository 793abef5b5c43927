// The right-hand side: loading, results, their absence, problems, and what the service says of
// itself.

import { addPictures } from "./add.js";
import { byId, count, element } from "./element.js";
import { showEmpty, showProblem, together } from "./messages.js";
import { addResults, dropResult, showResults } from "./results.js";
import { skeleton, someImages, tiles } from "./tiles.js";

const found = byId("found");
const message = byId("message");
const more = byId("more");

export const shown = () => found.querySelectorAll(".card").length;

/** Something is on its way. Results stay, dimmed, until it comes. */
export function showBusy(status) {
  clear();
  byId("results").setAttribute("aria-busy", "true");
  byId("status").textContent = status;
  if (shown() === 0) found.replaceChildren(skeleton(12));
}

/** The answer to `query`. */
export function show(answer, info, query, { onClear, ...on }) {
  clear();
  showResults(answer.results, on);
  byId("link").hidden = false;
  byId("warnings").replaceChildren(...answer.warnings.map((warning) => element("li", {}, warning)));
  byId("warnings").hidden = answer.warnings.length === 0;
  showProgress(answer, info);
  if (answer.results.length > 0) return;
  found.replaceChildren();
  const filtered = query.category.length > 0 || Object.keys(query.attributes).length > 0;
  if (info.index.size === 0) showNoGallery(info);
  else if (filtered) {
    showEmpty(
      message,
      "No image passes these filters",
      "Loosen them to see results.",
      "Clear the filters",
      onClear,
    );
  } else showEmpty(message, "Nothing was found", "The gallery holds no other image.");
}

/** The next results, behind those that are there. */
export function showMore(answer, info, { byKeyboard, ...on }) {
  message.replaceChildren();
  const first = addResults(answer.results, on);
  showProgress(answer, info);
  if (byKeyboard) first?.focus();
}

export function showMoreBusy(busy) {
  more.disabled = busy;
  more.textContent = busy ? "Loading…" : "More results";
}

/** What went wrong, instead of results. `limits` is null until the service has sent them. */
export function showFailure(problem, limits, onRetry) {
  clear();
  found.replaceChildren();
  showProblem(message, problem, limits, onRetry);
}

/** Why there are no more results; those that there are stay. */
export function showMoreFailure(problem, limits, onRetry) {
  showProblem(message, problem, limits, onRetry);
  message.scrollIntoView({ block: "nearest" });
}

/** Nothing is asked yet: how it goes, and images to begin with. Another search aborts `signal`. */
export async function showStart(info, signal, onPick) {
  clear();
  document.title = "raycd";
  if (info.index.size === 0) {
    found.replaceChildren();
    showNoGallery(info);
    return;
  }
  const grid = element("div", {}, skeleton(12));
  found.replaceChildren(
    element(
      "div",
      { className: "welcome" },
      element("h2", {}, "Find the image that you mean"),
      element(
        "p",
        {},
        "Give an image, say what should differ from it, and look through what comes close. " +
          "Take any result as the next reference, and go on from there.",
      ),
    ),
    element("h3", {}, "Begin with one of these"),
    grid,
  );
  try {
    grid.replaceChildren(tiles(await someImages(info, signal), onPick));
  } catch (problem) {
    if (problem.name !== "AbortError")
      showProblem(grid, problem, info.limits, () => showStart(info, signal, onPick));
  }
}

/** A link or a reloaded page whose image was uploaded: only the user has it. */
export function showWaiting(image, onWithout) {
  clear();
  found.replaceChildren();
  showEmpty(
    message,
    "This search needs your image again",
    `It began with an uploaded file, ${image.name}. ` +
      "A link keeps the words and filters, not the file. " +
      "Drop, paste or choose it, and the search goes on.",
    "Go on without it",
    onWithout,
  );
}

/** Several images are sent together, and these would be refused. */
export function showTooLarge(limits) {
  clear();
  found.replaceChildren();
  showEmpty(message, "These images are too large together", together(limits));
}

export function showUnasked() {
  showEmpty(
    message,
    "Nothing to search with yet",
    "Give a reference image, or describe what you look for.",
  );
}

export function showRefining() {
  byId("status").textContent = "Say what should differ from this image, then search.";
}

/** An image has gone from the gallery; `words` say so. */
export function showWithout(imageId, words) {
  dropResult(imageId);
  byId("status").textContent = words;
}

/**
 * Go where the results begin if that is out of sight: below the form on a narrow screen, or
 * scrolled away.
 */
export function bringIntoView() {
  const { top } = byId("results").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("results").scrollIntoView();
}

export async function copyLink(query) {
  const uploaded = query.image?.upload !== undefined;
  try {
    await navigator.clipboard.writeText(location.href);
    byId("status").textContent = uploaded
      ? "Link copied. It keeps the words and filters; " +
        "your image is not in it and has to be given again."
      : "Link copied.";
  } catch {
    // refused, or not there because the page came by plain http
    byId("status").textContent = "Copy the address of this page: it is the link.";
  }
}

/** Index and model, in the footer. */
export function showAbout({ index, model }) {
  // A search engine does not tell its recall
  const recall = index.recall == null ? "" : `, recall ${index.recall.toFixed(3)}`;
  byId("about").textContent =
    `${count(index.size, "image")}, ${index.kind} index${recall}, ` +
    `${model.encoder} with ${model.head}`;
}

function showProgress({ results, total, timings }, info) {
  const end = shown();
  const where = end ? `${end.toLocaleString("en")} of ${count(total, "image")}` : "";
  // Where it should have been re-ranked and was not, a warning says why
  const reranked = results.some((result) => typeof result.rerank_score === "number");
  byId("status").textContent = reranked ? `${where}, re-ranked in ${spoken(timings.rerank)}` : where;
  more.hidden = results.length === 0 || end >= total || end > info.limits.offset;
  byId("timings").textContent = Object.entries(timings)
    .map(([step, milliseconds]) => `${step} ${spoken(milliseconds)}`)
    .join(", ");
}

const spoken = (milliseconds) => `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;

function showNoGallery({ live }) {
  const title = "The gallery is empty";
  if (live)
    showEmpty(message, title, "Add pictures to it.", "Add to the gallery", () => addPictures());
  else showEmpty(message, title, "Build a bundle from images, and start the service with it.");
}

function clear() {
  byId("results").removeAttribute("aria-busy");
  byId("status").textContent = "";
  message.replaceChildren();
  byId("warnings").hidden = byId("link").hidden = more.hidden = true;
}
