// What an image is: fields for its category and attributes, with what the gallery has as
// suggestions.

import { byId, element } from "./element.js";
import { ownOf } from "./query.js";

const INCOMPLETE = "Give it a name and a value, or remove it.";

const rows = byId("add-attributes");
const more = byId("add-attribute");
let known = {}; // attribute -> its values
let most = 0; // categories and attributes of one image

/** Suggest what the gallery has. */
export function suggestLabels(info) {
  known = info.attributes;
  most = info.limits.attributes;
  fill("known-categories", Object.keys(info.categories));
  fill("known-attributes", Object.keys(known));
}

export function startLabels() {
  more.addEventListener("click", () => {
    rows.append(row());
    changed();
    pairs().at(-1)[0].focus();
  });
  rows.addEventListener("input", changed);
}

/** As the service takes them. */
export function readLabels() {
  const category = byId("add-category").value.trim();
  const attributes = pairs().map((pair) => pair.map((input) => input.value.trim()));
  return { category: category ? [category] : [], attributes: Object.fromEntries(attributes) };
}

const pairs = () => [...rows.children].map((one) => [...one.querySelectorAll("input")]);

function row() {
  const name = field("Attribute", "known-attributes", "colour");
  const value = field("Value", "known-values", "blue");
  value.addEventListener("focus", () =>
    fill("known-values", Object.keys(ownOf(known, name.value.trim(), {}))),
  );
  const remove = element(
    "button",
    { type: "button", className: "remove", "aria-label": "Remove this attribute" },
    "×",
  );
  const one = element("li", {}, name, value, remove);
  remove.addEventListener("click", () => {
    one.remove();
    changed();
    more.focus();
  });
  return one;
}

function field(label, list, placeholder) {
  const input = element("input", {
    type: "text",
    maxLength: 512,
    autocomplete: "off",
    placeholder,
  });
  input.setAttribute("aria-label", label);
  input.setAttribute("list", list);
  return input;
}

function changed() {
  const names = new Set();
  for (const [name, value] of pairs()) {
    for (const input of [name, value])
      input.setCustomValidity(input.value.trim() ? "" : INCOMPLETE);
    if (names.has(name.value.trim())) name.setCustomValidity("This attribute is there already.");
    names.add(name.value.trim());
  }
  more.disabled = rows.children.length + 1 >= most; // one for the category
}

function fill(list, texts) {
  byId(list).replaceChildren(...texts.map((value) => element("option", { value })));
}
