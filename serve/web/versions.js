// What this page has changed in the gallery. What it reads afterwards is at least as new, whichever
// replica answers.

const changed = new Map(); // image id -> version of the gallery since when it is so
let newest = 0;

/** Take note of what the service has answered to a change. */
export function noteChange({ image_id: imageId, version }) {
  changed.set(imageId, version);
  newest = Math.max(newest, version);
}

/** The least version that an answer must have, as part of an address; "" where any will do. */
export const sinceChanges = () => (newest ? `min_version=${newest}` : "");

/**
 * Likewise for one image. Its address is new with each of its pictures, so the browser shows no
 * older one.
 */
export const sinceChangeOf = (imageId) =>
  changed.has(imageId) ? `min_version=${changed.get(imageId)}` : "";
