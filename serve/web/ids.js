// Ids for new images, from the names of their files.

import { Problem } from "./service.js";

const LENGTH = 200; // characters; the service takes more
const ROUNDS = 20; // after so many the user is asked whether to replace

/** "Summer/IMG 17.JPG" -> "IMG 17", in characters that the service takes. */
function fromName(name) {
  const stem = name.replace(/\.[^.]*$/, "").replace(/[\p{C}\p{Z}]+/gu, " ");
  const id = [...stem].slice(0, LENGTH).join("").trim();
  return canBeId(id) ? id : "image";
}

/** A browser takes . and .. in an address for folders, however they are encoded. */
export const canBeId = (id) => !["", ".", ".."].includes(id);

/**
 * An id for each file name, other than those in `used` and than one another: name, name-2,
 * name-3...
 */
export function proposeIds(names, used) {
  const taken = new Set(used);
  return names.map((name) => {
    const stem = fromName(name);
    let id = stem;
    for (let number = 2; taken.has(id); number += 1) id = `${stem}-${number}`;
    taken.add(id);
    return id;
  });
}

/** The same, and none that the gallery has: `whichExist` says which of some ids it has. */
export async function freeIds(names, used, whichExist) {
  const taken = new Set(used);
  let ids = proposeIds(names, taken);
  for (let round = 0; round < ROUNDS; round += 1) {
    const there = await whichExist(ids.filter((id) => !taken.has(id))).catch((problem) => {
      // It is asked again before anything is replaced
      if (problem instanceof Problem) return new Set();
      throw problem;
    });
    if (there.size === 0) break;
    there.forEach((id) => taken.add(id));
    ids = proposeIds(names, taken);
  }
  return ids;
}
