// Files that are dropped or pasted anywhere on the page, so that one that misses its target does
// not replace the page.

const takers = []; // the last one that is open gets them

/** Let `take` have the files that come while `isOpen`; `target` is highlighted while they hover. */
export function takeFiles(target, take, isOpen = () => true) {
  takers.push({ target, take, isOpen });
}

const taker = () => takers.findLast(({ isOpen }) => isOpen());
const hasFiles = (event) => event.dataTransfer.types.includes("Files");

let inside = 0; // dragenter and dragleave come for every element on the way

function highlight(change) {
  inside = Math.max(0, inside + change);
  for (const one of takers) one.target.classList.toggle("over", inside > 0 && one === taker());
}

document.addEventListener("dragenter", (event) => hasFiles(event) && highlight(1));
document.addEventListener("dragleave", (event) => hasFiles(event) && highlight(-1));
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  highlight(-inside);
  taker()?.take([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length === 0) return; // words, for the field that has the focus
  event.preventDefault();
  taker()?.take([...event.clipboardData.files]);
});
