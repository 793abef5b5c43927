// The grid of what was found: picture, relative score, and why. The explanation shows on hover and
// on focus.

import { moveByArrows } from "./arrows.js";
import { letDrag } from "./dropping.js";
import { byId, element } from "./element.js";
import { originalLink, picture } from "./pictures.js";
import { thumbnailOf } from "./service.js";
import { categoryOf, nameOf, removeButton } from "./tiles.js";

/**
 * Show the first results of a query instead of what was there. `on` has the callbacks:
 * open(imageId) where its full picture is looked at, use(imageId) as the next reference,
 * add(imageId, less) beside it or null where the service takes one image, and remove(imageId) or null
 * where images stay.
 */
export function showResults(results, on) {
  const grid = element("ul", { className: "grid results" });
  moveByArrows(grid, ".use");
  byId("found").replaceChildren(grid);
  addResults(results, on);
}

/** Show more results behind those that are there; returns the first new one's button. */
export function addResults(results, on) {
  const grid = byId("found").querySelector(".results");
  const before = grid.children.length;
  grid.append(...results.map((result, index) => card(result, before + index + 1, on)));
  return grid.children[before]?.querySelector(".use");
}

/** Take out an image that has gone from the gallery. */
export function dropResult(imageId) {
  const cells = [...byId("found").querySelectorAll("li[data-image]")];
  const index = cells.findIndex((cell) => cell.dataset.image === imageId);
  if (index < 0) return;
  (cells[index + 1] ?? cells[index - 1])?.querySelector(".use, .tile").focus();
  cells[index].remove();
}

let cards = 0; // so far

function card(result, rank, on) {
  const { image_id: imageId, attributes } = result;
  const name = nameOf(result);
  const why = explanation(result, `why-${(cards += 1)}`); // a rank comes again where one is removed
  const link = originalLink(
    imageId,
    { className: "picture", "aria-label": `${name}, the full picture in a new tab` },
    picture(thumbnailOf(imageId), ""),
  );
  const words =
    [categoryOf(result), ...Object.values(attributes)].filter(Boolean).join(", ") || imageId;
  const use = element(
    "button",
    {
      type: "button",
      className: "use",
      onclick: () => on.use(imageId),
      "aria-label": `Use as reference: ${name}, result ${rank}`,
      "aria-describedby": why.id,
    },
    "Use as reference",
  );
  const cell = element(
    "li",
    { className: "card" },
    element("div", { className: "frame" }, link, why),
    element(
      "p",
      { className: "facts" },
      element("span", { className: "what", title: name }, words),
      score(result),
    ),
    element(
      "div",
      { className: "acts" },
      use,
      on.remove && removeButton(result, on.remove),
      on.add && signs(imageId, name, on.add),
    ),
  );
  // The middle button opens it, too
  for (const kind of ["click", "auxclick"])
    link.addEventListener(kind, ({ button }) => button < 2 && on.open(imageId));
  letDrag(link, imageId);
  cell.dataset.image = imageId;
  return cell;
}

/** The buttons that have the results be more like this one, or less. */
function signs(imageId, name, add) {
  const button = (words, less) =>
    element(
      "button",
      {
        type: "button",
        onclick: () => add(imageId, less),
        "aria-label": `${less ? "Less" : "More"} like ${name}`,
      },
      words,
    );
  return element("span", { className: "signs" }, button("+ more", false), button("− less", true));
}

const cosine = (value) => value.toFixed(2).replace("-0.00", "0.00");

/**
 * How far above the gallery's mean the match is: cosines of photographs are all nearly the same.
 */
function score({ score: match, relative_score: relative }) {
  const [title, words] =
    relative === null
      ? ["Cosine with the query", cosine(match)]
      : [
          "Standard deviations above the gallery's mean",
          `${relative < 0 ? "" : "+"}${relative.toFixed(1)} σ`,
        ];
  return element("span", { className: "score", title }, words);
}

/** How near the query it is, and each half of it alone; where it was re-ranked, what decided. */
function explanation({ score: match, rerank_score: reranked, explanation: halves }, id) {
  const rows = [
    ["re-ranked", reranked ?? null],
    ["match", match],
    ["image alone", halves.image],
    ["text alone", halves.text],
  ]
    .filter(([, value]) => value !== null)
    .flatMap(([name, value]) => {
      const bar = element("span", { className: "share", "aria-hidden": "true" });
      bar.style.setProperty("--share", Math.max(0, Math.min(1, value)));
      return [element("dt", {}, name), element("dd", {}, bar, cosine(value))];
    });
  return element("div", { className: "why", id }, element("dl", {}, ...rows));
}
