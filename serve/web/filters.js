// The filters of the form: categories, and of each attribute some values, all but these, or a range
// where values are numbers.

import { byId, element } from "./element.js";
import { ownOf } from "./query.js";
import { rangeOf, readRange, setRange } from "./range.js";

const FEW = 12; // more values than this are folded away
const UNKNOWN = { min: "", max: "" }; // ends of a range of which /v1/info says nothing

const root = byId("filters");
const facets = () => [...root.querySelectorAll("[data-attribute]")];
const boxes = (name, inside = root) => [...inside.querySelectorAll(`input[name="${name}"]`)];
const checked = (name, inside) =>
  boxes(name, inside)
    .filter((box) => box.checked)
    .map((box) => box.value);

/** Offer what the gallery has. */
export function offerFilters({ categories, attributes, ranges }) {
  const names = Object.entries(categories);
  root.replaceChildren(
    ...(names.length > 1 ? [offerCategories(names)] : []),
    ...Object.entries(attributes).map(([name, values]) =>
      facet(name, Object.entries(values), ownOf(ranges, name, null)),
    ),
  );
}

/** The filters of a query. */
export function readFilters() {
  const conditions = facets().map((one) => [one.dataset.attribute, conditionOf(one)]);
  return {
    category: checked("category"),
    attributes: Object.fromEntries(conditions.filter(([, condition]) => condition !== null)),
  };
}

/** Show the filters of a query; what the form does not offer, as a link may have it, is added. */
export function setFilters({ category, attributes }) {
  if (category.length && !boxes("category").length) root.prepend(offerCategories([]));
  check("category", root, category);
  const offered = facets().map((one) => one.dataset.attribute);
  const missing = Object.keys(attributes).filter((name) => !offered.includes(name));
  root.append(...missing.map((name) => facet(name, [], null)));
  for (const one of facets()) {
    const name = one.dataset.attribute;
    const wanted = ownOf(attributes, name, []);
    const parts = Array.isArray(wanted) ? { in: wanted } : wanted;
    // The form has one list, which says the same as both, unless they leave nothing
    const left = parts.in?.filter((value) => !parts.not?.includes(value));
    check("attribute", one, left?.length ? left : (parts.in ?? parts.not ?? []));
    if ((parts.gte ?? parts.lte) !== undefined && !one.querySelector(".range"))
      one.firstChild.after(rangeOf(name, UNKNOWN));
    for (const box of boxes("not", one)) box.checked = !parts.in && parts.not !== undefined;
    setRange(one, parts);
    if (conditionOf(one) !== null) one.open = true;
  }
}

/** Forget the filters. */
export const clearFilters = () => setFilters({ category: [], attributes: {} });

function check(name, inside, values) {
  const offered = boxes(name, inside).map((box) => box.value);
  const missing = [...new Set(values)].filter((value) => !offered.includes(value));
  // Of all chips, those of the categories are the first
  const added = chips(missing.map((value) => [value, null]), name);
  inside.querySelector(".chips")?.append(...added);
  for (const box of boxes(name, inside)) {
    box.checked = values.includes(box.value);
    if (box.checked && box.closest("details")) box.closest("details").open = true;
  }
}

/** Values alone are a list, as they always were in links; null where nothing is asked for. */
function conditionOf(one) {
  const values = checked("attribute", one);
  const without = values.length > 0 && boxes("not", one)[0].checked;
  const range = readRange(one);
  if (Object.keys(range).length === 0 && !without) return values.length ? values : null;
  return { ...(values.length ? { [without ? "not" : "in"]: values } : {}), ...range };
}

function offerCategories(names) {
  const some = chips(names, "category");
  if (names.length > FEW) return fold("Only in", group("Only in", some));
  const legend = element("legend", {}, "Only in");
  return element("fieldset", {}, legend, element("div", { className: "chips" }, ...some));
}

function facet(name, values, numbers) {
  const one = fold(
    name,
    numbers && rangeOf(name, numbers),
    group(name, chips(values, "attribute")),
    element(
      "label",
      { className: "check" },
      element("input", { type: "checkbox", name: "not" }),
      "All but these",
    ),
  );
  one.dataset.attribute = name;
  return one;
}

const fold = (title, ...inside) =>
  element(
    "details",
    { className: "fold" },
    element("summary", {}, title),
    ...inside.filter(Boolean),
  );

const group = (title, some) =>
  element("div", { className: "chips", role: "group", "aria-label": title }, ...some);

const chips = (values, name) =>
  values.map(([value, number]) => {
    const box = element("input", { type: "checkbox", name, value, className: "unseen" });
    const tally = number !== null ? element("small", {}, number.toLocaleString("en")) : null;
    return element("label", { className: "chip" }, box, element("span", {}, value), tally);
  });
