// The grid of what was found: picture, score, and why. The explanation shows on hover and on focus.

import { moveByArrows } from "./arrows.js";
import { byId, element, picture } from "./element.js";
import { originalOf } from "./service.js";

/** Show the first results of a query in place of what was there; `onUse` gets the id of the next reference. */
export function showResults(results, onUse) {
  const grid = element("ul", { className: "grid results" });
  moveByArrows(grid, ".use");
  byId("found").replaceChildren(grid);
  addResults(results, onUse);
}

/** Show more results behind those that are there; returns the first new one's button. */
export function addResults(results, onUse) {
  const grid = byId("found").querySelector(".results");
  const before = grid.children.length;
  grid.append(...results.map((result, place) => card(result, before + place + 1, onUse)));
  return grid.children[before]?.querySelector(".use");
}

function card(result, rank, onUse) {
  const { image_id, category, attributes, score } = result;
  const name = [category, image_id].filter(Boolean).join(" ");
  const why = explanation(result, `why-${rank}`);
  const link = element("a", { className: "picture", href: originalOf(image_id), target: "_blank", rel: "noopener",
    "aria-label": `${name}, the full picture in a new tab` }, picture(result.thumbnail, ""));
  const words = [category, ...Object.values(attributes)].filter(Boolean).join(", ") || image_id;
  const use = element("button", { type: "button", className: "use", onclick: () => onUse(image_id),
    "aria-label": `Use as reference: ${name}, result ${rank}`, "aria-describedby": why.id }, "Use as reference");
  return element("li", { className: "card" },
    element("div", { className: "frame" }, link, why),
    element("p", { className: "facts" },
      element("span", { className: "what", title: name }, words),
      element("span", { className: "score" }, cosine(score))),
    use);
}

const cosine = (value) => value.toFixed(2).replace("-0.00", "0.00");

/** How near the query it is, how near each half of the query alone, and how far above the gallery's mean. */
function explanation({ score, relative_score, explanation: halves }, id) {
  const rows = [["match", score], ["image alone", halves.image], ["text alone", halves.text]]
    .filter(([, value]) => value !== null).flatMap(([name, value]) => {
      const bar = element("span", { className: "share", "aria-hidden": "true" });
      bar.style.setProperty("--share", Math.max(0, Math.min(1, value)));
      return [element("dt", {}, name), element("dd", {}, bar, cosine(value))];
    });
  const relative = `${relative_score < 0 ? "" : "+"}${relative_score.toFixed(1)} σ`;
  rows.push(element("dt", {}, "relative"), element("dd", { className: "relative" }, relative));
  return element("div", { className: "why", id }, element("dl", {}, ...rows));
}
