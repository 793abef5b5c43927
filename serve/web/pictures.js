// Pictures of the gallery. <img> and links send no API key: with one, pictures are fetched and
// shown as blob: URLs.

import { element } from "./element.js";
import { hasKey } from "./key.js";
import { getPicture, originalOf } from "./service.js";

const wanted = new WeakMap(); // img -> the address that it is to show
const AGAIN_MS = 2000; // a service that is busy with many pictures has asked for a second

/** A picture that says so when its file is gone, rather than showing the browser's broken image. */
export function picture(address, alt) {
  const image = element("img", { alt, loading: hasKey() ? "eager" : "lazy", decoding: "async" });
  let tried = false;
  image.addEventListener("error", () => {
    if (tried) image.replaceWith(element("span", { className: "gone" }, "no picture"));
    else setTimeout(showIn, AGAIN_MS, image, address);
    tried = true;
  });
  showIn(image, address);
  return image;
}

/** Let `image` show what lies at the address; null: nothing. */
export async function showIn(image, address) {
  wanted.set(image, address);
  if (address && (!hasKey() || address.startsWith("blob:"))) {
    image.src = address;
    return;
  }
  image.removeAttribute("src");
  if (!address) return;
  const blob = await getPicture(address).catch(() => null);
  if (wanted.get(image) !== address) return;
  if (blob) showBlob(image, blob);
  else image.dispatchEvent(new Event("error"));
}

/** A picture of the user's own file. */
export function filePicture(file) {
  const image = element("img", { alt: "" });
  image.addEventListener("error", () =>
    image.replaceWith(element("span", { className: "gone" }, "no preview")),
  );
  showBlob(image, file);
  return image;
}

/** A link that opens the full picture of an image in a new tab. */
export function originalLink(imageId, properties, ...children) {
  const href = originalOf(imageId);
  const link = element(
    "a",
    { ...properties, href, target: "_blank", rel: "noopener" },
    ...children,
  );
  // The middle button's click is an auxclick, as the right one's is, which opens nothing
  for (const kind of ["click", "auxclick"])
    link.addEventListener(kind, (event) => {
      if (!hasKey() || event.button > 1) return;
      event.preventDefault();
      openFetched(link.href);
    });
  return link;
}

/** The image keeps what it has loaded, so the address may go at once. */
function showBlob(image, blob) {
  const address = URL.createObjectURL(blob);
  for (const end of ["load", "error"])
    image.addEventListener(end, () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

async function openFetched(address) {
  const tab = window.open(""); // now: later the browser would take it for a pop-up
  try {
    tab.location = URL.createObjectURL(await getPicture(address)); // it goes with this page
  } catch {
    tab?.close();
  }
}
