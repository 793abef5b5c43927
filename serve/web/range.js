// A range of numbers: two fields to type its ends into, and a slider with two thumbs that shows them.
// A thumb at the end of the slider asks for nothing.

import { element } from "./element.js";

const STEPS = 100; // of a slider, about
const ENDS = ["gte", "lte"];

/** Fields and slider for numbers from `min` to `max`; without a slider where they are one number. */
export function rangeOf(name, { min, max }) {
  const [fields, thumbs] = [{}, {}];
  const step = max > min ? 10 ** Math.floor(Math.log10((max - min) / STEPS)) : 1;
  const low = Math.floor(min / step) * step;
  const limits = { min: low, max: low + Math.ceil((max - low) / step) * step, step };
  for (const [index, end] of ENDS.entries()) {
    const label = ["from", "to"][index];
    fields[end] = element("input", {
      ...{ type: "number", name: end, step: "any", placeholder: [min, max][index] },
      ariaLabel: `${name} ${label}`,
    });
    thumbs[end] = element("input", {
      ...{ type: "range", ...limits, value: [limits.min, limits.max][index] },
      ariaLabel: `${name} ${label}, slider`,
    });
    thumbs[end].addEventListener("input", () => {
      const other = thumbs[ENDS[1 - index]];
      const beyond = index === 0 ? Math.min : Math.max;
      thumbs[end].value = beyond(Number(thumbs[end].value), Number(other.value));
      const atEnd = thumbs[end].value === thumbs[end][["min", "max"][index]];
      fields[end].value = atEnd ? "" : Number(thumbs[end].value);
    });
    fields[end].addEventListener("input", () => show(thumbs[end], fields[end].value, index));
  }
  const labels = ENDS.map((end, index) =>
    element("label", {}, ["from", "to"][index], fields[end]),
  );
  const slider = element("div", { className: "thumbs" }, ...Object.values(thumbs));
  return element("div", { className: "range" }, ...labels, ...(min < max ? [slider] : []));
}

/** The range that is asked for: {gte, lte}, each where it is given. */
export function readRange(inside) {
  const given = fieldsOf(inside).filter((field) => field.value !== "");
  return Object.fromEntries(given.map((field) => [field.name, Number(field.value)]));
}

/** Show a range that is asked for. */
export function setRange(inside, wanted) {
  for (const field of fieldsOf(inside)) {
    field.value = wanted[field.name] ?? "";
    field.dispatchEvent(new Event("input"));
  }
}

const fieldsOf = (inside) => [...inside.querySelectorAll(".range input[type=number]")];

function show(thumb, value, index) {
  thumb.value = value === "" ? thumb[["min", "max"][index]] : value;
}
