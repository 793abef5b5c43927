// Arrow keys, Home and End move the focus in a grid whose columns the style sheet decides.

/** `selector` names what takes the focus in each cell. */
export function moveByArrows(grid, selector) {
  grid.addEventListener("keydown", (event) => {
    const cells = [...grid.querySelectorAll(selector)];
    const here = cells.indexOf(event.target.closest(selector));
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const there = {
      ArrowRight: here + 1,
      ArrowLeft: here - 1,
      ArrowDown: here + columns,
      ArrowUp: here - columns,
      Home: 0,
      End: cells.length - 1,
    }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    cells[there]?.focus();
  });
}
