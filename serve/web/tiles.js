// Images of the gallery to choose from: the picker's pages, and a handful to begin with.

import { moveByArrows } from "./arrows.js";
import { element, picture } from "./element.js";
import { getGallery } from "./service.js";

const TO_BEGIN_WITH = 12;

/** A grid of buttons, one an image; `onChoose` gets the image's id. */
export function tiles(items, onChoose) {
  const grid = element("ul", { className: "grid tiles" }, ...items.map((item) => {
    const name = [item.category, item.image_id].filter(Boolean).join(" ");
    const button = element("button", { type: "button", className: "tile", title: name,
      onclick: () => onChoose(item.image_id) }, picture(item.thumbnail, name));
    return element("li", {}, button);
  }));
  moveByArrows(grid, ".tile");
  return grid;
}

/** Grey squares where a grid is about to be. */
export const skeleton = (number) => element("ul", { className: "grid skeleton", "aria-hidden": "true" },
  ...Array.from({ length: number }, () => element("li", {}, element("span", {}))));

/** Some images of the gallery from several categories, others at each visit. */
export async function someImages(info, signal) {
  const categories = Object.entries(info.categories).sort(() => Math.random() - 0.5).slice(0, 3);
  if (categories.length === 0) categories.push(["", info.index.size]);
  const limit = Math.ceil(TO_BEGIN_WITH / categories.length);
  const pages = await Promise.all(categories.map(([category, size]) =>
    getGallery({ category, limit, offset: Math.floor(Math.random() * Math.max(1, size - limit)) }, signal)));
  return pages.flatMap((page) => page.items);
}
