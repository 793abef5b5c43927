// The form: words, filters and options. It is filled from what the service offers, read as a query,
// and set from one.

import { byId, element } from "./element.js";
import { offerFilters, readFilters, setFilters } from "./filters.js";
import { furtherImages, showFurther } from "./further.js";
import { BLANK } from "./query.js";
import { referenceImage, showReference } from "./reference.js";

const COUNTS = [6, 12, 24, 48, 96, 192];
const DEPTHS = [0, 20, 50, 100, 200, 500, 1000];
const OPTIONS = [
  "negative_text",
  "image_weight",
  "text_weight",
  "top_k",
  "exclude_reference",
  "session",
  "exact",
  "rerank_depth",
];

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
  setFilters(query);
}

/** The query that the form says, with the reference image. */
export function readForm() {
  const images = { image: referenceImage(), further: furtherImages() };
  const query = { ...BLANK, ...images, ...readFilters() };
  query.text = form.text.value.trim();
  query.negative_text = form.negative_text.value.trim();
  for (const name of ["image_weight", "text_weight", "top_k"])
    query[name] = Number(form[name].value);
  for (const name of ["exclude_reference", "session", "exact"]) query[name] = form[name].checked;
  const depth = form.rerank_depth.value;
  query.rerank_depth = depth === "" ? null : Number(depth);
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
  showFurther(query.further);
  for (const name of ["text", "negative_text", "image_weight", "text_weight"])
    form[name].value = query[name];
  const { top_k, rerank_depth } = within(query);
  setCount(form.top_k, top_k);
  if (rerank_depth === null) form.rerank_depth.value = "";
  else setCount(form.rerank_depth, rerank_depth);
  for (const name of ["exclude_reference", "session", "exact"]) form[name].checked = query[name];
  setFilters(query);
  if (OPTIONS.some((name) => query[name] !== BLANK[name])) byId("options").open = true;
  showWeights();
}

/** Options as they were at first; the words and filters stay. */
export function resetOptions() {
  setForm({ ...readForm(), ...Object.fromEntries(OPTIONS.map((name) => [name, BLANK[name]])) });
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
