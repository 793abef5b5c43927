// The dialog that adds pictures to the gallery: each with an id of its own, all with one category
// and attributes.

import { Addition } from "./addition.js";
import { open } from "./dialogs.js";
import { takeFiles } from "./dropping.js";
import { byId, count } from "./element.js";
import { freeIds, proposeIds } from "./ids.js";
import { readLabels, startLabels } from "./labels.js";
import { whichExist } from "./service.js";
import { refusal } from "./uploads.js";

const TOGETHER = 4; // requests at once

const dialog = byId("add");
const button = byId("add-send");
let limits = null;
let on = null;
let additions = [];
let sending = 0;
let proposing = Promise.resolve(); // one after another: each has to know the ids of the one before

/**
 * Listen. `callbacks`: added(imageIds, whether that was all) after some were; used(imageId) as the
 * reference.
 */
export function startAdding(info, callbacks) {
  limits = info.limits;
  on = callbacks;
  startLabels();
  const input = byId("add-file");
  input.accept = limits.formats.map((format) => `image/${format.toLowerCase()}`).join();
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  byId("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send(waiting());
  });
  takeFiles(byId("add-zone"), take, () => dialog.open);
}

/** Open the dialog, with these files in it. */
export function addPictures(files = []) {
  if (!dialog.open) {
    if (sending === 0) keepOnly((one) => !one.added && !one.refused);
    open(dialog);
  }
  take(files);
}

const waiting = () => additions.filter((one) => !one.added && !one.refused);
const known = (ids) => whichExist(ids, limits.batch);

function take(files) {
  const ids = proposeIds(
    files.map((file) => file.name),
    additions.map((one) => one.id),
  );
  const fresh = files.map(
    (file, index) =>
      new Addition(file, ids[index], limits, {
        left: leaveOut,
        again: (one) => send([one]),
        used: use,
        renamed: showState,
      }),
  );
  additions.push(...fresh);
  byId("additions").append(...fresh.map((one) => one.node));
  files.forEach((file, index) => {
    const words = refusal(file, limits);
    if (words) fresh[index].refuse(words);
  });
  showState();
  if (fresh.length > 0) fresh[0].input.focus();
  proposing = proposing.then(() => propose(fresh));
}

/** Ids for them that the gallery does not have. */
async function propose(fresh) {
  const used = additions.filter((one) => !fresh.includes(one)).map((one) => one.id);
  const ids = await freeIds(
    fresh.map((one) => one.file.name),
    used,
    known,
  );
  fresh.forEach((one, index) => one.propose(ids[index]));
  showState();
}

function leaveOut(addition) {
  keepOnly((one) => one !== addition);
  (waiting()[0]?.input ?? byId("add-file")).focus();
}

function keepOnly(isKept) {
  additions.filter((one) => !isKept(one)).forEach((one) => one.node.remove());
  additions = additions.filter(isKept);
  showState();
}

function use(imageId) {
  dialog.close();
  on.used(imageId);
}

/** Send some of them. Those whose id the gallery has are asked about first. */
async function send(some) {
  sending += some.length;
  showState();
  try {
    await proposing;
    additions.forEach((one) => one.check(additions));
    if (some.length === 0 || !byId("add-form").reportValidity()) return;
    await sendNew(some);
  } finally {
    sending -= some.length;
    showState();
  }
  finish(some);
}

async function sendNew(some) {
  const labels = readLabels();
  try {
    const there = await known(some.filter((one) => !one.replaces).map((one) => one.id));
    const asked = some.filter((one) => there.has(one.id) && !one.replaces);
    asked.forEach((one) => one.askToReplace());
    await sendAll(
      some.filter((one) => !asked.includes(one)),
      labels,
    );
  } catch (problem) {
    some.forEach((one) => one.fail(problem));
  }
}

async function sendAll(some, labels) {
  const queue = [...some];
  const lane = async () => {
    while (queue.length > 0 && dialog.open) {
      const one = queue.shift();
      // Else it was left out meanwhile
      if (additions.includes(one)) await one.send(labels).then(showState);
    }
  };
  await Promise.all(Array.from({ length: TOGETHER }, lane));
}

function finish(some) {
  showState();
  const added = additions.filter((one) => one.added);
  const all = sending === 0 && added.length === additions.length && dialog.open;
  const next = some.find((one) => !one.added) ?? waiting()[0];
  if (all) dialog.close();
  else (next?.input ?? some.at(-1).line.querySelector("button"))?.focus();
  if (some.some((one) => one.added))
    on.added(
      added.map((one) => one.id),
      all,
    );
}

/** The button says what it will do, the status what has been done. */
function showState() {
  additions.forEach((one) => one.check(additions));
  const left = waiting().length;
  const added = additions.filter((one) => one.added).length;
  button.textContent = sending ? "Adding…" : left ? `Add ${count(left, "picture")}` : "Add";
  button.disabled = sending > 0 || left === 0;
  byId("add-state").textContent =
    added || sending ? `${added} of ${count(additions.length, "picture")} added` : "";
  byId("add-labels").hidden = additions.length === 0;
}
