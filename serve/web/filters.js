// The filters of the form: categories, and of each attribute some values, all but these, or a range
// where values are numbers.

import { byId, element } from "./element.js";
import { ownOf } from "./query.js";
import { rangeOf, readRange, setRange } from "./range.js";

const FEW = 12; // more values than this are folded away

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

/** Show the filters of a query. */
export function setFilters({ category, attributes }) {
  check(boxes("category"), category);
  for (const one of facets()) {
    const wanted = ownOf(attributes, one.dataset.attribute, []);
    const parts = Array.isArray(wanted) ? { in: wanted } : wanted;
    check(boxes("attribute", one), parts.in ?? parts.not ?? []);
    for (const box of boxes("not", one)) box.checked = !parts.in && parts.not !== undefined;
    setRange(one, parts);
    if (conditionOf(one) !== null) one.open = true;
  }
}

/** Forget the filters. */
export const clearFilters = () => setFilters({ category: [], attributes: {} });

function check(some, values) {
  for (const box of some) {
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
    const tally = element("small", {}, number.toLocaleString("en"));
    return element("label", { className: "chip" }, box, element("span", {}, value), tally);
  });
