// The dialog that shows the gallery page by page. Where the gallery is live, pictures are added and
// removed here, too.

import { addPictures } from "./add.js";
import { open } from "./dialogs.js";
import { takeFiles } from "./dropping.js";
import { byId, count, element } from "./element.js";
import { showProblem } from "./messages.js";
import { getGallery, newest } from "./service.js";
import { skeleton, tiles } from "./tiles.js";

const nextSignal = newest();
const dialog = byId("picker");
const category = byId("picker-category");
const newestFirst = byId("picker-newest");

let on = null;
let live = false;
let size = 0; // of a page
let offset = 0;
let fresh = []; // ids that were added just now

/** Listen. `callbacks`: picked(imageId); remove(imageId) asks, and removes it. */
export function startPicker(info, callbacks) {
  on = callbacks;
  live = info.live;
  size = Math.min(48, info.limits.page);
  offerCategories(info);
  newestFirst.closest("label").hidden = byId("picker-add").hidden = !live;
  byId("pick").addEventListener("click", () => {
    fresh = [];
    say("");
    open(dialog);
    turn(offset);
  });
  for (const choice of [category, newestFirst]) choice.addEventListener("change", () => turn(0));
  byId("picker-previous").addEventListener("click", () => turn(offset - size));
  byId("picker-next").addEventListener("click", () => turn(offset + size));
  // Beside it
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  if (!live) return;
  byId("picker-add").addEventListener("click", () => addPictures());
  takeFiles(dialog, addPictures, () => dialog.open);
}

/** The categories that there are now; the chosen one stays. */
export function offerCategories({ categories }) {
  const chosen = category.value;
  const options = Object.entries(categories).map(
    ([name, number]) => new Option(`${name} (${number})`, name),
  );
  category.replaceChildren(category.options[0], ...options);
  category.value = Object.hasOwn(categories, chosen) ? chosen : "";
  category.closest("label").hidden = options.length < 2;
}

/**
 * Show the images that were just added, before all others; `reveal`: even if the gallery is not
 * open.
 */
export async function showFresh(imageIds, reveal) {
  if (!dialog.open && !reveal) return;
  fresh = imageIds;
  newestFirst.checked = true;
  category.value = "";
  if (!dialog.open) open(dialog);
  say(
    imageIds.length === 1 ? `Added ${imageIds[0]}.` : `Added ${count(imageIds.length, "image")}.`,
  );
  await turn(0);
  focusTile(0);
}

/** The page anew, without an image that has gone; `words` say so. */
export async function showWithout(imageId, words) {
  if (!dialog.open) return;
  const index = cells().findIndex((cell) => cell.dataset.image === imageId);
  say(words);
  await turn(cells().length === 1 ? Math.max(0, offset - size) : offset);
  focusTile(index);
}

const cells = () => [...byId("picker-body").querySelectorAll(".tiles > li")];
const focusTile = (index) => (cells()[index] ?? cells().at(-1))?.querySelector(".tile").focus();

function say(words) {
  byId("picker-news").textContent = words;
}

function pick(imageId) {
  dialog.close();
  on.picked(imageId);
}

function turn(to) {
  offset = to;
  return showPage({ offset, limit: size, category: category.value, newest: newestFirst.checked });
}

async function showPage(asked) {
  const body = byId("picker-body");
  const buttons = [byId("picker-previous"), byId("picker-next")];
  if (cells().length === 0) body.replaceChildren(skeleton(12));
  body.setAttribute("aria-busy", "true");
  buttons.forEach((button) => {
    button.disabled = true;
  });
  try {
    const { items, total } = await getGallery(asked, nextSignal());
    body.replaceChildren(
      items.length
        ? tiles(items, pick, live ? on.remove : null, fresh)
        : element("p", {}, "No images here."),
    );
    body.scrollTop = 0;
    const end = asked.offset + items.length;
    const range = [asked.offset + 1, end].map((number) => number.toLocaleString("en")).join(" to ");
    byId("picker-range").textContent = items.length ? `${range} of ${count(total, "image")}` : "";
    buttons[0].disabled = asked.offset === 0;
    buttons[1].disabled = end >= total;
  } catch (error) {
    if (error.name === "AbortError") return;
    showProblem(body, error, null, () => showPage(asked));
  }
  body.removeAttribute("aria-busy");
}
