// Which of the service's galleries the page is of: the one that its address names, or the default.

import { byId, element } from "./element.js";

const NAME = "gallery";
const DEFAULT = "default";
const named = new URLSearchParams(location.search).get(NAME);

/** What the paths of its API begin with. */
export const api = named === null ? "v1" : `v1/galleries/${encodeURIComponent(named)}`;

/** Parameters of a link to a query of it. */
export const newLink = () => new URLSearchParams(named === null ? {} : { [NAME]: named });

/**
 * Offer the galleries where there are several. Whether the page stays: a key that is not for the
 * default gallery opens the first of its own.
 */
export function startGalleries(galleries) {
  const isThere = galleries.some(({ name }) => name === (named ?? DEFAULT));
  const first = galleries.find(({ refused }) => refused === null);
  if (named === null && !isThere && first) {
    location.replace(`?${new URLSearchParams({ [NAME]: first.name })}`);
    return false;
  }
  if (named !== null && isThere) byId("brand").href = `?${newLink()}`;
  const choice = byId("gallery");
  choice.replaceChildren(
    ...galleries.map(({ name, refused }) =>
      element("option", { value: name, disabled: refused !== null }, name),
    ),
  );
  const showOwn = () => {
    choice.value = named ?? DEFAULT;
  };
  showOwn();
  // Back may bring the page as it was left: with the choice that led away from it
  window.onpageshow = showOwn;
  choice.onchange = () =>
    location.assign(
      choice.value === DEFAULT
        ? location.pathname
        : `?${new URLSearchParams({ [NAME]: choice.value })}`,
    );
  choice.parentElement.hidden = galleries.length < (isThere ? 2 : 1);
  return true;
}
