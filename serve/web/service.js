// Talks to the service. Addresses are relative, so that the page also works behind a path prefix.

import { api } from "./galleries.js";
import { anotherKey, authorization } from "./key.js";
import { request } from "./query.js";
import { noteChange, sinceChangeOf, sinceChanges } from "./versions.js";

/** What went wrong: a problem document of the service, or status 0 where no answer came. */
export class Problem extends Error {
  constructor(status, document, retryAfter = 0) {
    super(document?.detail ?? `status ${status}`);
    Object.assign(this, {
      status,
      detail: document?.detail ?? "",
      reason: document?.reason,
      retryAfter,
    });
  }
}

/**
 * A source of abort signals: each new one aborts the one before, so an older answer never replaces
 * a newer.
 */
export function newest() {
  let controller = null;
  return () => {
    controller?.abort();
    controller = new AbortController();
    return controller.signal;
  };
}

/** The galleries that the key opens. */
export const getGalleries = async () => (await call("v1/galleries", {})).galleries;

export const getInfo = () => call(`${api}/info`, {});

export function getGallery({ offset, limit, category, newest: newestFirst }, signal) {
  const asked = new URLSearchParams({ offset, limit });
  if (category) asked.set("category", category);
  if (newestFirst) asked.set("newest", true);
  return call(withQuery(`${api}/gallery`, asked, sinceChanges()), { signal });
}

/**
 * `fileOf` gives the file of an image of the query that was uploaded, `reference` is the history of
 * the step before.
 */
export async function search(query, { fileOf, reference }, offset, signal) {
  const sent = await request(query, fileOf, offset, reference);
  signal.throwIfAborted();
  return call(withQuery(`${api}/search`, sinceChanges()), { method: "POST", ...sent, signal });
}

const KEPT_ALIVE = 30_000; // characters: browsers keep 64 KiB in all

/**
 * Tells the service what people did, behind all that the page waits for, and also where the page is
 * being left.
 */
export function sendEvents(events) {
  const body = JSON.stringify({ events });
  const headers = { "Content-Type": "application/json", ...authorization() };
  const keepalive = body.length < KEPT_ALIVE;
  fetch(`${api}/events`, { method: "POST", body, headers, keepalive, priority: "low" }).catch(() => {});
}

/** Those of the ids that are in the gallery. Asks for `most` at a time. */
export async function whichExist(ids, most) {
  const found = new Set();
  for (let begin = 0; begin < ids.length; begin += most) {
    const some = ids.slice(begin, begin + most);
    const body = JSON.stringify({ searches: some.map((id) => ({ image_id: id, top_k: 1 })) });
    const { items } = await call(withQuery(`${api}/search/batch`, sinceChanges()), {
      method: "POST",
      body,
      headers: { "Content-Type": "application/json" },
    });
    items.forEach(({ status, problem }, index) => {
      if (status === 200) found.add(some[index]);
      else if (status !== 404) throw new Problem(status, problem);
    });
  }
  return found;
}

/** Add an image to the gallery, or replace the one of that id. */
export async function putImage(imageId, file, { category, attributes }) {
  const body = new FormData();
  body.append("image", file, file.name || "pasted");
  category.forEach((one) => body.append("category", one));
  body.append("attributes", JSON.stringify(attributes));
  const written = await call(`${api}/gallery/${encodeURIComponent(imageId)}`, { method: "PUT", body });
  noteChange(written);
  return written;
}

export async function deleteImage(imageId) {
  noteChange(await call(`${api}/gallery/${encodeURIComponent(imageId)}`, { method: "DELETE" }));
}

const imageOf = (imageId, size) =>
  withQuery(`${api}/images/${encodeURIComponent(imageId)}`, `size=${size}`, sinceChangeOf(imageId));
export const thumbnailOf = (imageId) => imageOf(imageId, "thumbnail");
export const originalOf = (imageId) => imageOf(imageId, "original");

/**
 * The picture at an address, as a Blob of an image's type. Never asks for a key: there are many of
 * them at once.
 */
export async function getPicture(address) {
  const blob = await (await answer(address, {}, false)).blob();
  if (!blob.type.startsWith("image/")) throw new Problem(0, null);
  return blob;
}

function withQuery(path, ...parts) {
  const query = parts.map(String).filter(Boolean).join("&");
  return query ? `${path}?${query}` : path;
}

async function call(address, options) {
  const response = await answer(address, options);
  try {
    const body = await response.json();
    options.signal?.throwIfAborted();
    return body;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, null);
  }
}

/**
 * The response, which is a good one. Where the service wants another key, the user may be asked for
 * it.
 */
async function answer(address, options, mayAsk = true) {
  for (;;) {
    const used = authorization();
    const response = await reach(address, { ...options, headers: { ...options.headers, ...used } });
    if (response.ok) return response;
    const problem = await problemOf(response);
    options.signal?.throwIfAborted();
    if (problem.status !== 401 || !mayAsk || !(await anotherKey(used))) throw problem;
  }
}

async function reach(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, null);
  }
}

async function problemOf(response) {
  const document = await response.json().catch(() => null); // of a proxy, perhaps
  return new Problem(response.status, document, Number(response.headers.get("Retry-After")) || 0);
}
