// Images of the gallery to choose from: the picker's pages, and a handful to begin with.

import { moveByArrows } from "./arrows.js";
import { byId, element } from "./element.js";
import { picture } from "./pictures.js";
import { getGallery, thumbnailOf } from "./service.js";

const TO_BEGIN_WITH = 12;

/**
 * A grid of buttons, one an image. `onChoose` gets the image's id; so does `onRemove`, where images
 * may go.
 */
export function tiles(items, onChoose, onRemove = null, fresh = []) {
  const grid = element(
    "ul",
    { className: "grid tiles" },
    ...items.map((item) => {
      const { image_id: imageId } = item;
      const name = nameOf(item);
      const button = element(
        "button",
        { type: "button", className: "tile", title: name, onclick: () => onChoose(imageId) },
        picture(thumbnailOf(imageId), name),
      );
      const cell = element(
        "li",
        { className: fresh.includes(imageId) ? "fresh" : "" },
        button,
        onRemove && removeButton(item, onRemove),
      );
      cell.dataset.image = imageId;
      return cell;
    }),
  );
  moveByArrows(grid, ".tile");
  return grid;
}

let categories = 0; // of the gallery: where there is one, it says nothing of an image

/** Name images by what the gallery is now. */
export const startNames = (info) => {
  categories = Object.keys(info.categories).length;
};
export const categoryOf = (item) => (categories > 1 ? item.category : "");
export const nameOf = (item) => [categoryOf(item), item.image_id].filter(Boolean).join(" ");

/** The button that leads to an image's removal: in its corner, or below it where nothing hovers. */
export const removeButton = (item, onRemove) =>
  element(
    "button",
    {
      type: "button",
      className: "remove discard",
      title: "Remove from the gallery",
      "aria-label": `Remove ${nameOf(item)} from the gallery`,
      onclick: () => onRemove(item.image_id),
    },
    byId("bin").content.cloneNode(true),
  );

/** Grey squares where a grid is about to be. */
export const skeleton = (number) =>
  element(
    "ul",
    { className: "grid skeleton", "aria-hidden": "true" },
    ...Array.from({ length: number }, () => element("li", {}, element("span", {}))),
  );

/** Some images of the gallery from several categories, others at each visit. */
export async function someImages(info, signal) {
  const categories = Object.entries(info.categories)
    .sort(() => Math.random() - 0.5)
    .slice(0, 3);
  if (categories.length === 0) categories.push(["", info.index.size]);
  const limit = Math.min(Math.ceil(TO_BEGIN_WITH / categories.length), info.limits.page);
  const pages = await Promise.all(
    categories.map(([category, size]) =>
      getGallery(
        { category, limit, offset: Math.floor(Math.random() * Math.max(1, size - limit)) },
        signal,
      ),
    ),
  );
  return pages.flatMap((page) => page.items);
}
