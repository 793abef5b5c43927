// A range of numbers: two fields to type its ends into, and a slider with two thumbs that shows them.
// A thumb at the end of the slider asks for nothing.

import { element } from "./element.js";

const STEPS = 100; // of a slider, about
const LOW = { name: "gte", label: "from", end: "min", nearer: Math.min };
const HIGH = { name: "lte", label: "to", end: "max", nearer: Math.max };

const SMALLEST = 1e-90; // between two numbers: browsers write at most 100 digits behind the point
const canSlide = ({ min, max }) => max - min > SMALLEST && Number.isFinite(max - min);

/**
 * Fields and slider for numbers from `min` to `max`; without a slider where they are one number, or
 * what lies between them cannot be written.
 */
export function rangeOf(name, numbers) {
  const sides = [LOW, HIGH].map((side) => {
    const field = element("input", {
      ...{ type: "number", name: side.name, step: "any", placeholder: numbers[side.end] },
      ariaLabel: `${name} ${side.label}`,
    });
    return { ...side, field, labelled: element("label", {}, side.label, field) };
  });
  const slider = canSlide(numbers) ? [sliderOf(name, numbers, sides)] : [];
  return element("div", { className: "range" }, ...sides.map((side) => side.labelled), ...slider);
}

function sliderOf(name, { min, max }, sides) {
  const exponent = Math.floor(Math.log10((max - min) / STEPS));
  const step = 10 ** exponent;
  const low = Math.floor(min / step) * step;
  const high = low + Math.ceil((max - low) / step) * step;
  // As the browser writes them: a thumb at an end has that end's value
  const digits = Math.max(0, -exponent);
  const limits = { min: Number(low.toFixed(digits)), max: Number(high.toFixed(digits)), step };
  const thumbs = sides.map(({ label, end }) =>
    element("input", {
      ...{ type: "range", ...limits, value: limits[end] },
      ariaLabel: `${name} ${label}, slider`,
    }),
  );
  for (const [index, { field, end, nearer }] of sides.entries()) {
    const [thumb, other] = [thumbs[index], thumbs[1 - index]];
    thumb.addEventListener("input", () => {
      thumb.value = nearer(Number(thumb.value), Number(other.value));
      field.value = thumb.value === thumb[end] ? "" : Number(thumb.value);
    });
    field.addEventListener("input", () => {
      thumb.value = field.value === "" ? thumb[end] : field.value;
    });
  }
  return element("div", { className: "thumbs" }, ...thumbs);
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
