// Files that are dropped or pasted anywhere on the page, so that one that misses its place does not replace the page.

const takers = []; // the last one that is open gets them

/** Let `take` have the files that come while `isOpen`; `place` is marked while they hover. */
export function takeFiles(place, take, isOpen = () => true) {
  takers.push({ place, take, isOpen });
}

const taker = () => takers.findLast(({ isOpen }) => isOpen());
const brings = (event) => event.dataTransfer.types.includes("Files");

let inside = 0; // dragenter and dragleave come for every element on the way

function mark(change) {
  inside = Math.max(0, inside + change);
  for (const one of takers) one.place.classList.toggle("over", inside > 0 && one === taker());
}

document.addEventListener("dragenter", (event) => brings(event) && mark(1));
document.addEventListener("dragleave", (event) => brings(event) && mark(-1));
document.addEventListener("dragover", (event) => brings(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  mark(-inside);
  taker()?.take([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length === 0) return; // words, for the field that has the focus
  event.preventDefault();
  taker()?.take([...event.clipboardData.files]);
});
