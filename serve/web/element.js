// Builds DOM nodes. What the service or the user said goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** A new node. A child that is null is left out; strings become text. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** "3,000 images" */
export const count = (number, noun) =>
  `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
