// Files that are dropped or pasted anywhere on the page, so that one that misses its target does
// not replace the page; and images of the gallery that are dragged from the results.

const IMAGE = "application/x-raycd-image";

const takers = []; // the last one that is open gets them

/**
 * Let `take` have the files that come while `isOpen(element)`, where they are dropped or pasted;
 * `target` is highlighted while they hover.
 */
export function takeFiles(target, take, isOpen = () => true) {
  takers.push({ target, take, isOpen });
}

/** Let `take` have the id of an image of the gallery that is dropped on `target`. */
export function takeImages(target, take) {
  target.addEventListener("dragover", (event) => {
    if (!hasImage(event)) return;
    event.preventDefault();
    event.stopPropagation(); // it may lie within another target
    target.classList.add("over");
  });
  for (const end of ["dragleave", "drop"])
    target.addEventListener(end, () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    if (!hasImage(event)) return;
    event.preventDefault();
    event.stopPropagation();
    take(event.dataTransfer.getData(IMAGE));
  });
}

/** Let an image of the gallery be dragged by a node. */
export function letDrag(node, imageId) {
  node.addEventListener("dragstart", (event) => event.dataTransfer.setData(IMAGE, imageId));
}

const taker = (element) => takers.findLast(({ isOpen }) => isOpen(element));
const hasImage = (event) => event.dataTransfer.types.includes(IMAGE);
// A picture that is dragged from a page is a file, too
const hasFiles = (event) => event.dataTransfer.types.includes("Files") && !hasImage(event);

let inside = 0; // dragenter and dragleave come for every element on the way

function highlight(change, element) {
  inside = Math.max(0, inside + change);
  const one = inside > 0 ? taker(element) : null;
  for (const { target } of takers) target.classList.toggle("over", target === one?.target);
}

document.addEventListener("dragenter", (event) => hasFiles(event) && highlight(1, event.target));
document.addEventListener(
  "dragleave",
  (event) => hasFiles(event) && highlight(-1, event.relatedTarget),
);
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  highlight(-inside);
  taker(event.target)?.take([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length === 0) return; // words, for the field that has the focus
  event.preventDefault();
  taker(event.target)?.take([...event.clipboardData.files]);
});
