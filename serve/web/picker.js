// The dialog that shows the gallery page by page.

import { byId, count } from "./element.js";
import { showProblem } from "./messages.js";
import { getGallery, newest } from "./service.js";
import { skeleton, tiles } from "./tiles.js";

const nextSignal = newest();
const dialog = byId("picker");
let offset = 0;

/** Listen; `onPick` gets the id of the image that was picked. */
export function startPicker(info, onPick) {
  const category = byId("picker-category");
  const size = Math.min(48, info.limits.page);
  const pick = (imageId) => { dialog.close(); onPick(imageId); };
  const turn = (to) => { offset = to; return showPage({ offset, limit: size, category: category.value }, pick); };

  category.append(...Object.entries(info.categories).map(([name, number]) => new Option(`${name} (${number})`, name)));
  category.closest("label").hidden = Object.keys(info.categories).length < 2;
  byId("pick").addEventListener("click", () => { dialog.showModal(); turn(offset); });
  category.addEventListener("change", () => turn(0));
  byId("picker-previous").addEventListener("click", () => turn(offset - size));
  byId("picker-next").addEventListener("click", () => turn(offset + size));
  byId("picker-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
}

async function showPage(asked, onPick) {
  const body = byId("picker-body");
  const buttons = [byId("picker-previous"), byId("picker-next")];
  body.replaceChildren(skeleton(12));
  buttons.forEach((button) => { button.disabled = true; });
  try {
    const { items, total } = await getGallery(asked, nextSignal());
    body.replaceChildren(items.length ? tiles(items, onPick) : "No images here.");
    body.scrollTop = 0;
    const end = asked.offset + items.length;
    byId("picker-place").textContent = items.length
      ? `${[asked.offset + 1, end].map((place) => place.toLocaleString("en")).join(" to ")} of ${count(total, "image")}`
      : "";
    buttons[0].disabled = asked.offset === 0;
    buttons[1].disabled = end >= total;
  } catch (error) {
    if (error.name !== "AbortError") showProblem(body, error, null, () => showPage(asked, onPick));
  }
}
