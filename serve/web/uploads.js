// The image files that the user gave, in memory for as long as the page is open. Nothing is sent
// before a search.

import { list, tooLarge } from "./messages.js";

const ROOM_BYTES = 10_000; // of a request: what goes with the file
const TYPES = { "image/x-ms-bmp": "BMP", "image/jpg": "JPEG" };

const files = new Map(); // key -> {file, preview}

/** Why the service would refuse the file, or "" where that is for it to say. */
export function refusal(file, limits) {
  if (file.size === 0) return "This file is empty. Choose another image.";
  if (file.size + ROOM_BYTES > limits.body_bytes)
    return `This image is too large. ${tooLarge(limits)}`;
  const format = TYPES[file.type] ?? file.type.replace("image/", "").toUpperCase();
  if (file.type && !limits.formats.includes(format)) {
    return `This is not an image that the service reads. It takes ${list(limits.formats)}.`;
  }
  return "";
}

/** Whether the files of a search with several images, which are sent as base64, are too large. */
export function isTooLarge({ image, further }, limits) {
  if (further.length === 0) return false;
  const sizes = [image, ...further].map((one) => fileOf(one)?.size ?? 0);
  const sent = sizes.reduce((sum, size) => sum + Math.ceil(size / 3) * 4, 0);
  return sent + ROOM_BYTES > limits.body_bytes;
}

/** Keep a file; returns what stands for it in a query. */
export function keep(file) {
  const upload = `${Date.now()}-${files.size}`;
  files.set(upload, { file, preview: URL.createObjectURL(file) });
  return { upload, name: file.name || "pasted image" };
}

export const fileOf = (image) => files.get(image?.upload)?.file ?? null;
export const previewOf = (image) => files.get(image?.upload)?.preview ?? null;

/**
 * Whether the query's image was uploaded in another visit: links and reloads keep its name only.
 */
export const isLost = (image) => image?.upload !== undefined && !files.has(image.upload);
