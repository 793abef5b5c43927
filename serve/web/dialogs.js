// Modal dialogs: they close by their own button and by Escape.

/** Show it; resolves to its return value once it is closed, "" where nothing was decided. */
export function open(dialog) {
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

/** Buttons of the class `close` close the dialog that they are in. */
export function startDialogs() {
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}
