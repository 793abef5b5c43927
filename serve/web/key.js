// The API key, where the service wants one: asked for when it answers 401, kept until the tab is
// closed.

import { open } from "./dialogs.js";
import { byId } from "./element.js";

const NAME = "raycd-api-key";

const dialog = byId("key");
const input = byId("key-value");
let asking = null; // the question that is open

let given = null; // where the browser forbids to keep it

function kept() {
  try {
    return sessionStorage.getItem(NAME) ?? given;
  } catch {
    return given;
  }
}

function keep(key) {
  given = key;
  try {
    if (key === null) sessionStorage.removeItem(NAME);
    else sessionStorage.setItem(NAME, key);
  } catch {
    // until the page is left, then
  }
}

export const hasKey = () => kept() !== null;

/** The header that a request carries. */
export const authorization = () => (hasKey() ? { Authorization: `Bearer ${kept()}` } : {});

/**
 * After a request with the header `used` was refused: whether there is another key now, which the
 * user may give.
 */
export async function anotherKey(used) {
  // Given while that request was on its way
  if (used.Authorization !== authorization().Authorization) return true;
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

export function startKey() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(input.value.trim());
    dialog.close("given");
  });
  byId("key-forget").addEventListener("click", () => {
    keep(null);
    location.reload(); // what was shown with it goes, too
  });
  byId("key-forget").hidden = !hasKey();
}

async function ask() {
  byId("key-why").textContent = hasKey()
    ? "The service does not know that key, or it has been revoked."
    : "";
  input.value = "";
  const answered = (await open(dialog)) === "given";
  input.value = "";
  byId("key-forget").hidden = !hasKey();
  return answered;
}
