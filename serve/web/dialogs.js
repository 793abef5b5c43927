// Modal dialogs: they close by their own button and by Escape.

const ends = new WeakMap(); // dialog -> ends its last opening

/** Show it; resolves to its return value once it is closed, "" where nothing was decided. */
export function open(dialog) {
  if (!dialog.open) {
    ends.get(dialog)?.(); // it was closed a moment ago, and the browser has not said so yet
    dialog.returnValue = "";
    dialog.showModal();
  }
  return new Promise((resolve) => {
    const end = () => {
      dialog.removeEventListener("close", closed);
      resolve(dialog.returnValue);
    };
    const closed = () => dialog.open || end(); // where it comes late, it is of an earlier opening
    dialog.addEventListener("close", closed);
    ends.set(dialog, end);
  });
}

/** Buttons of the class `close` close the dialog that they are in. */
export function startDialogs() {
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}
