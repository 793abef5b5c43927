// The dialog that asks before an image is removed from the gallery, and removes it.

import { open } from "./dialogs.js";
import { byId } from "./element.js";
import { whyNotChanged } from "./messages.js";
import { picture } from "./pictures.js";
import { deleteImage, thumbnailOf } from "./service.js";

const dialog = byId("remove");
const button = byId("remove-go");

let limits = null;
let isReference = () => false;
let imageId = "";
let isWaiting = false;

/** Listen. `isTheReference` says whether an id is the reference image's. */
export function startRemoving(info, isTheReference) {
  limits = info.limits;
  isReference = isTheReference;
  button.addEventListener("click", remove);
  dialog.addEventListener("cancel", (event) => isWaiting && event.preventDefault()); // Escape
}

/** Ask about an image; resolves to whether it has been removed. */
export async function askToRemove(id) {
  imageId = id;
  byId("remove-picture").replaceChildren(picture(thumbnailOf(id), ""));
  byId("remove-id").textContent = id;
  byId("remove-reference").hidden = !isReference(id);
  say("");
  return (await open(dialog)) === "removed";
}

async function remove() {
  const id = imageId;
  wait(true);
  say("Removing…");
  try {
    await deleteImage(id);
    dialog.close("removed");
  } catch (problem) {
    if (problem.status === 404)
      dialog.close("removed"); // by somebody else, meanwhile
    else say(whyNotChanged(problem, limits));
  } finally {
    wait(false);
  }
}

/** Keep the question open until it is known what has become of the image. */
function wait(isOn) {
  for (const one of dialog.querySelectorAll("button")) one.disabled = isOn;
  isWaiting = isOn;
}

function say(words) {
  byId("remove-problem").textContent = words;
}
