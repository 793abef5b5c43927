// Talks to the service. Addresses are relative, so that the page also works behind a path prefix.

import { request } from "./query.js";

/** What went wrong: a problem document of the service, or status 0 where no answer came. */
export class Problem extends Error {
  constructor(status, document, retryAfter = 0) {
    super(document?.detail ?? `status ${status}`);
    Object.assign(this, { status, detail: document?.detail ?? "", reason: document?.reason, retryAfter });
  }
}

/** A source of abort signals: each new one aborts the one before, so an older answer never replaces a newer. */
export function newest() {
  let controller = null;
  return () => {
    controller?.abort();
    controller = new AbortController();
    return controller.signal;
  };
}

export const getInfo = () => call("v1/info", {});

export function getGallery({ offset, limit, category }, signal) {
  const asked = new URLSearchParams({ offset, limit });
  if (category) asked.set("category", category);
  return call(`v1/gallery?${asked}`, { signal });
}

/** `file` is the uploaded image where the query has one. */
export const search = (query, file, offset, signal) =>
  call("v1/search", { method: "POST", ...request(query, file, offset), signal });

export const thumbnailOf = (imageId) => `v1/images/${encodeURIComponent(imageId)}?size=thumbnail`;
export const originalOf = (imageId) => `v1/images/${encodeURIComponent(imageId)}?size=original`;

async function call(address, options) {
  let response, body;
  try {
    response = await fetch(address, options);
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(response && !response.ok ? response.status : 0, null, retryAfter(response));
  }
  options.signal?.throwIfAborted();
  if (!response.ok) throw new Problem(response.status, body, retryAfter(response));
  return body;
}

const retryAfter = (response) => Number(response?.headers.get("Retry-After")) || 0;
