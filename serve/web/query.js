// What is asked. A query is a plain object with the API's names; `image` is null, {id}, {url} or
// {upload, name}, where `upload` is the key of a file that this page holds in memory; `further` has
// such images with `less`, whether the results shall be less like them. It becomes a request, and a
// link that reopens it.

import { newLink } from "./galleries.js";

export const BLANK = {
  image: null,
  further: [],
  text: "",
  negative_text: "",
  image_weight: 1,
  text_weight: 1,
  top_k: 24,
  category: [],
  attributes: {},
  exclude_reference: true,
  session: false, // whether it goes on from the step before
  exact: false,
  rerank_depth: null, // as many as the model usually re-ranks
};
const LESS = -0.5; // weight of an image that the results shall be less like; of another it is 1
const WORDS = ["text", "negative_text"];
const WEIGHTS = { image_weight: [0, 10], text_weight: [0, 10] };
const COUNTS = { top_k: [1, Infinity], rerank_depth: [0, Infinity] };
const NUMBERS = { ...WEIGHTS, ...COUNTS };
const LISTS = ["in", "not"]; // of a condition
const BOUNDS = ["gte", "lte"];
const SWITCHES = ["exclude_reference", "session", "exact"];

export const isEmpty = (query) =>
  query.image === null && query.text === "" && query.further.every(({ less }) => less);
export const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/**
 * [[name, value], ...] as {name: [values]}. Names may be constructor or __proto__: nothing is
 * assigned by name.
 */
export function grouped(pairs) {
  const groups = new Map();
  for (const [name, value] of pairs) groups.set(name, [...(groups.get(name) ?? []), value]);
  return Object.fromEntries(groups);
}

/** What an object has of its own under a name; `otherwise` where it has nothing. */
export const ownOf = (object, name, otherwise) =>
  Object.hasOwn(object, name) ? object[name] : otherwise;

/**
 * Body and headers of the request: JSON, or a form where one file goes with it. `fileOf` gives the
 * file of an image that was uploaded; `reference` is the history of the step before.
 */
export async function request(query, fileOf, offset, reference) {
  const { image, further, exclude_reference, rerank_depth, session, ...fields } = query;
  fields.session = true; // each step has a history, also for steps that shall count it later
  if (session && reference) fields.reference = reference;
  fields.offset = offset;
  if (rerank_depth !== null) fields.rerank_depth = rerank_depth;
  if (further.length > 0) {
    const all = image ? [{ ...image, less: false }, ...further] : further;
    fields.images = await Promise.all(all.map((one) => weighted(one, fileOf(one))));
    if (all.some(({ id }) => id !== undefined)) fields.exclude_reference = exclude_reference;
    return asJson(fields);
  }
  const file = fileOf(image);
  if (image?.id !== undefined) Object.assign(fields, { image_id: image.id, exclude_reference });
  if (image?.url !== undefined) fields.image_url = image.url;
  if (!file) return asJson(fields);
  const form = new FormData();
  form.append("image", file, file.name || "pasted");
  for (const [name, value] of Object.entries(fields)) {
    if (name === "category") value.forEach((category) => form.append(name, category));
    else form.append(name, name === "attributes" ? JSON.stringify(value) : value);
  }
  return { body: form };
}

const asJson = (fields) => ({
  body: JSON.stringify(fields),
  headers: { "Content-Type": "application/json" },
});

/** One of several images as a request has it, its file in base64. */
async function weighted({ id, url, less }, file) {
  const weight = less ? LESS : 1;
  if (id !== undefined) return { image_id: id, weight };
  if (url !== undefined) return { image_url: url, weight };
  return { image_base64: await dataUrl(file), weight };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/**
 * The query as the part of a link behind "?"; what is as usual is left out. An upload leaves only
 * its name, one beside the reference nothing.
 */
export function toLink(query) {
  const link = newLink();
  if (query.image?.id !== undefined) link.set("image_id", query.image.id);
  if (query.image?.url !== undefined) link.set("image_url", query.image.url);
  if (query.image?.upload !== undefined) link.set("upload", query.image.name);
  for (const { id, less } of query.further)
    if (id !== undefined) link.append(less ? "less" : "more", id);
  for (const name of [...WORDS, ...Object.keys(NUMBERS), ...SWITCHES]) {
    if (query[name] !== BLANK[name]) link.set(name, query[name]);
  }
  query.category.forEach((category) => link.append("category", category));
  const conditions = [];
  for (const [name, one] of Object.entries(query.attributes)) {
    // In a pair the name ends at the first colon
    if (!Array.isArray(one)) conditions.push([name, one]);
    else if (name.includes(":")) conditions.push([name, { in: one }]);
    else one.forEach((value) => link.append("attribute", `${name}:${value}`));
  }
  if (conditions.length) link.set("attributes", JSON.stringify(Object.fromEntries(conditions)));
  return link.toString();
}

/** The query of a link; what makes no sense in it is as usual. */
export function fromLink(search) {
  const link = new URLSearchParams(search);
  const query = { ...BLANK, category: link.getAll("category") };
  if (link.has("image_id")) query.image = { id: link.get("image_id") };
  else if (link.has("image_url")) query.image = { url: link.get("image_url") };
  else if (link.has("upload")) query.image = { upload: null, name: link.get("upload") };
  query.further = ["more", "less"].flatMap((name) =>
    link.getAll(name).map((id) => ({ id, less: name === "less" })),
  );
  for (const name of WORDS) query[name] = link.get(name) ?? "";
  for (const [name, [low, high]] of Object.entries(NUMBERS)) {
    const number = parseFloat(link.get(name));
    const value = name in COUNTS ? Math.floor(number) : number;
    if (value >= low && value <= high) query[name] = value;
  }
  for (const name of SWITCHES) if (link.has(name)) query[name] = link.get(name) === "true";
  const pairs = link
    .getAll("attribute")
    .map((pair) => [pair.indexOf(":"), pair])
    .filter(([colon]) => colon > 0);
  const values = grouped(
    pairs.map(([colon, pair]) => [pair.slice(0, colon), pair.slice(colon + 1)]),
  );
  query.attributes = { ...values, ...conditionsOf(link.get("attributes")) };
  return query;
}

/** The conditions of a link, those that the form can say. */
function conditionsOf(text) {
  let given = null;
  try {
    given = JSON.parse(text);
  } catch {
    // Somebody has cut the link off
  }
  const isList = (one) =>
    Array.isArray(one) && one.length > 0 && one.every((value) => typeof value === "string");
  const conditions = Object.entries(given ?? {}).map(([name, condition]) => {
    const parts = Object.entries(condition ?? {}).filter(([word, part]) =>
      LISTS.includes(word) ? isList(part) : BOUNDS.includes(word) && Number.isFinite(part),
    );
    return [name, Object.fromEntries(parts)];
  });
  return Object.fromEntries(conditions.filter(([, parts]) => Object.keys(parts).length > 0));
}
