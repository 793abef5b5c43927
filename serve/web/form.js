// The form: words, filters and options. It is filled from what the service offers, read as a query,
// and set from one.

import { byId, element } from "./element.js";
import { BLANK, grouped, ownOf } from "./query.js";
import { referenceImage, showReference } from "./reference.js";

const COUNTS = [6, 12, 24, 48, 96, 192];
const DEPTHS = [0, 20, 50, 100, 200, 500, 1000];
const OPTIONS = [
  "negative_text",
  "image_weight",
  "text_weight",
  "top_k",
  "exclude_reference",
  "exact",
  "rerank_depth",
];
const FEW = 12; // more values than this are folded away

const form = byId("query");
let most = 0; // results at a time
let deepest = 0; // candidates that may be re-ranked

/** Offer what the service has: examples, categories, attributes, numbers of results. */
export function fillForm(info, onExample) {
  form.text.placeholder = info.example_texts[0] ?? "";
  byId("examples").replaceChildren(
    ...info.example_texts
      .slice(0, 6)
      .map((text) =>
        element(
          "button",
          { type: "button", className: "chip", onclick: () => onExample(text) },
          text,
        ),
      ),
  );
  most = info.limits.top_k;
  form.top_k.replaceChildren(
    ...COUNTS.filter((number) => number <= most).map((number) => new Option(number)),
  );
  offerDepths(info);
  offerFilters(info);
}

/** How many candidates are re-ranked, where the model re-ranks; an empty value is its own number. */
function offerDepths({ model, limits }) {
  const usual = model.rerank_depth ?? 0;
  deepest = limits.rerank_depth ?? 0;
  const offered = DEPTHS.filter((depth) => depth <= deepest && depth !== usual);
  form.rerank_depth.replaceChildren(
    ...[...offered, usual]
      .sort((one, other) => one - other)
      .map((depth) => new Option(depth || "none", depth === usual ? "" : depth)),
  );
  for (const part of [form.rerank_depth, ...form.rerank_depth.labels]) part.hidden = usual === 0;
}

/** What the gallery can be filtered by now; what is checked stays so. */
export function refreshFilters(info) {
  const query = readForm();
  offerFilters(info);
  checkFilters(query);
}

function checkFilters({ category, attributes }) {
  for (const box of byId("filters").querySelectorAll("input")) {
    const wanted =
      box.name === "category" ? category : ownOf(attributes, box.dataset.attribute, []);
    box.checked = wanted.includes(box.value);
    if (box.checked && box.closest("details")) box.closest("details").open = true;
  }
}

function offerFilters(info) {
  const facets = Object.entries(info.attributes).map(([name, values]) =>
    choices(name, "attribute", values, name),
  );
  const categories =
    Object.keys(info.categories).length > 1
      ? [choices("Only in", "category", info.categories)]
      : [];
  byId("filters").replaceChildren(...categories, ...facets);
}

/** The query that the form says, with the reference image. */
export function readForm() {
  const query = { ...BLANK, image: referenceImage() };
  query.text = form.text.value.trim();
  query.negative_text = form.negative_text.value.trim();
  for (const name of ["image_weight", "text_weight", "top_k"])
    query[name] = Number(form[name].value);
  for (const name of ["exclude_reference", "exact"]) query[name] = form[name].checked;
  const depth = form.rerank_depth.value;
  query.rerank_depth = depth === "" ? null : Number(depth);
  const checked = [...byId("filters").querySelectorAll("input:checked")];
  query.category = checked.filter((box) => box.name === "category").map((box) => box.value);
  const others = checked.filter((box) => box.name !== "category");
  query.attributes = grouped(others.map((box) => [box.dataset.attribute, box.value]));
  return query;
}

/** A query, of a link or an earlier version of the service, within the limits of this one. */
export function within(query) {
  const depth = form.rerank_depth.hidden ? null : query.rerank_depth;
  return {
    ...query,
    top_k: Math.min(query.top_k, most),
    rerank_depth: depth === null ? null : Math.min(depth, deepest),
  };
}

/** Make the form say `query`. A value that the form does not offer, from a link, is taken up. */
export function setForm(query) {
  showReference(query.image);
  for (const name of ["text", "negative_text", "image_weight", "text_weight"])
    form[name].value = query[name];
  const { top_k, rerank_depth } = within(query);
  setCount(form.top_k, top_k);
  if (rerank_depth === null) form.rerank_depth.value = "";
  else setCount(form.rerank_depth, rerank_depth);
  for (const name of ["exclude_reference", "exact"]) form[name].checked = query[name];
  checkFilters(query);
  if (OPTIONS.some((name) => query[name] !== BLANK[name])) byId("options").open = true;
  showWeights();
}

/** Options as they were at first; the words and filters stay. */
export function resetOptions() {
  setForm({ ...readForm(), ...Object.fromEntries(OPTIONS.map((name) => [name, BLANK[name]])) });
}

/** Forget the filters. */
export function clearFilters() {
  for (const box of byId("filters").querySelectorAll("input")) box.checked = false;
}

/** The numbers beside the sliders. */
export function showWeights() {
  for (const output of form.querySelectorAll("output")) {
    output.value = Number(form[output.htmlFor.value].value).toFixed(1);
  }
}

/** A number that is not offered, from a link or a small limit, is added where it belongs. */
function setCount(select, number) {
  const options = [...select.options];
  if (!options.some((option) => countOf(option) === number)) {
    select.add(new Option(number), options.find((option) => countOf(option) > number) ?? null);
  }
  select.selectedIndex = [...select.options].findIndex((option) => countOf(option) === number);
}

const countOf = (option) => Number(option.value || option.text);

function choices(title, name, values, attribute = "") {
  const boxes = Object.entries(values).map(([value, number]) => {
    const box = element("input", { type: "checkbox", name, value, className: "unseen" });
    box.dataset.attribute = attribute;
    const tally = element("small", {}, number.toLocaleString("en"));
    return element("label", { className: "chip" }, box, element("span", {}, value), tally);
  });
  if (boxes.length <= FEW && !attribute) {
    return element(
      "fieldset",
      {},
      element("legend", {}, title),
      element("div", { className: "chips" }, ...boxes),
    );
  }
  const group = element(
    "div",
    { className: "chips", role: "group", "aria-label": title },
    ...boxes,
  );
  return element("details", { className: "fold" }, element("summary", {}, title), group);
}
