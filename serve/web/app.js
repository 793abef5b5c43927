// The page as a whole: what is asked, which step of the trail is shown, and what each action leads
// to.

import { startAdding } from "./add.js";
import * as answer from "./answer.js";
import { startDialogs } from "./dialogs.js";
import { byId } from "./element.js";
import { startEvents, tell } from "./events.js";
import { clearFilters } from "./filters.js";
import { addFurther, dropFurther, startFurther } from "./further.js";
import {
  fillForm,
  readForm,
  refreshFilters,
  resetOptions,
  setForm,
  showWeights,
  within,
} from "./form.js";
import { startGalleries } from "./galleries.js";
import { startKey } from "./key.js";
import { suggestLabels } from "./labels.js";
import * as picker from "./picker.js";
import { BLANK, fromLink, isEmpty, isSame, toLink } from "./query.js";
import { referenceImage, refuseReference, showReference, startReference } from "./reference.js";
import { askToRemove, startRemoving } from "./remove.js";
import { getGalleries, getInfo, newest, search } from "./service.js";
import { startNames } from "./tiles.js";
import { START, earlier, follow, showTrail, withHistory } from "./trail.js";
import { fileOf, isLost, isTooLarge } from "./uploads.js";

const nextSignal = newest();
let info = null;
let trail = START;
let asked = null; // the query whose results are shown or on their way
// The reference was taken from the results; what should differ from it is not said yet
let refining = false;
let waiting = false; // for an image that was uploaded in another visit

startDialogs();
startKey();
start();

async function start() {
  answer.showBusy("Starting…");
  try {
    if (!startGalleries(await getGalleries())) return;
    info = await getInfo();
  } catch (problem) {
    answer.showFailure(problem, null, start);
    return;
  }
  startNames(info);
  startEvents(info);
  fillForm(info, (text) => {
    byId("text").value = text;
    submit();
  });
  startReference(info, () => {
    setReference(referenceImage(), false);
    if (waiting && referenceImage()) submit();
  });
  startFurther(info, settle);
  picker.startPicker(info, { picked: pick, remove });
  if (info.live) startChanging();
  listen();
  answer.showAbout(info);
  byId("query").inert = false;
  open();
}

function startChanging() {
  suggestLabels(info);
  startRemoving(info, isReference);
  startAdding(info, {
    added: (imageIds, all) => picker.showFresh(imageIds, all).then(refresh),
    used: (imageId) => {
      byId("picker").close();
      pick(imageId);
    },
  });
}

function listen() {
  const form = byId("query");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("input", showWeights);
  form.addEventListener("change", (event) => {
    // Words and images wait for the button
    if (event.target.closest("#filters, #options")) settle();
  });
  byId("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("reset").addEventListener("click", () => {
    resetOptions();
    if (asked && !refining) submit();
  });
  byId("more").addEventListener("click", (event) => askMore(event.detail === 0));
  byId("link").addEventListener("click", () => answer.copyLink(asked));
  // Following the link would make an entry of the history, and so lose what is not in the address
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("results").focus();
    byId("results").scrollIntoView();
  });
  window.addEventListener("popstate", open);
}

/**
 * Show what the address and its history entry say: after a reload, a step back, or from somebody's
 * link.
 */
function open() {
  const kept = history.state?.trail;
  trail = kept
    ? // of an earlier version of the page, it lacks what came since
      { ...kept, steps: kept.steps.map((step) => ({ ...BLANK, ...step })) }
    : follow(START, fromLink(location.search), false);
  showStep();
}

function goTo(index) {
  trail = { ...trail, at: index };
  remember();
  showStep();
}

function showStep() {
  const kept = trail.steps[trail.at];
  const query = { ...kept, further: kept.further.filter((one) => !isLost(one)) };
  const signal = nextSignal(); // what was on its way belongs to another step
  refining = false;
  waiting = isLost(query.image);
  asked = null;
  setForm(query);
  showSteps();
  if (waiting) answer.showWaiting(query.image, goOnWithout);
  else if (isEmpty(query)) answer.showStart(info, signal, pick);
  else ask(within(query));
}

/** Ask again at once where the reference is still the one that was asked with. */
function settle() {
  if (asked && !refining && isSame(asked.image, referenceImage())) submit();
}

/** Ask what the form says. */
function submit() {
  const query = readForm();
  if (isEmpty(query)) {
    answer.showUnasked();
    byId("text").focus();
  } else if (isLost(query.image)) {
    answer.showWaiting(query.image, goOnWithout);
  } else if (isTooLarge(query, info.limits)) {
    answer.showTooLarge(info.limits);
  } else {
    trail = follow(trail, query, refining);
    refining = waiting = false;
    remember();
    showSteps();
    ask(query).then(answer.bringIntoView);
  }
}

/** Search by the words, without the image that was uploaded in another visit. */
function goOnWithout() {
  setReference(null, false);
  submit();
}

/** Into the address and the browser's history, so that Back, reloading and links work. */
function remember() {
  const link = toLink(trail.steps[trail.at]);
  const known = history.state?.trail && isSame(history.state.trail, trail);
  history[known ? "replaceState" : "pushState"](
    { trail },
    "",
    link ? `?${link}` : location.pathname,
  );
}

async function ask(query) {
  asked = query;
  document.title = query.text ? `${query.text} · raycd` : "raycd";
  answer.showBusy("Searching…");
  try {
    const found = await search(query, { fileOf, reference: earlier(trail) }, 0, nextSignal());
    if (found.history) {
      trail = withHistory(trail, found.history);
      history.replaceState({ trail }, "");
    }
    answer.show(found, info, query, {
      ...onResults(found),
      onClear: () => {
        clearFilters();
        submit();
      },
    });
    tellShown(found);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    if (problem.reason || [404, 413, 415].includes(problem.status)) refuseReference();
    answer.showFailure(problem, info.limits, () => ask(query));
  }
}

async function askMore(byKeyboard) {
  answer.showMoreBusy(true);
  try {
    const on = { fileOf, reference: earlier(trail) };
    const found = await search(asked, on, answer.shown(), nextSignal());
    answer.showMore(found, info, { ...onResults(found), byKeyboard });
    tellShown(found);
  } catch (problem) {
    if (problem.name !== "AbortError")
      answer.showMoreFailure(problem, info.limits, () => askMore(byKeyboard));
  } finally {
    answer.showMoreBusy(false);
  }
}

const tellShown = ({ query_id: queryId, results }) =>
  tell(
    queryId,
    "impression",
    results.map((result) => result.image_id),
  );

/** What may be done with the results of an answer, each of which is reported to the service. */
function onResults({ query_id: queryId }) {
  const reported =
    (act) =>
    (imageId, less = false) => {
      tell(queryId, less ? "dismiss" : "click", [imageId]);
      act(imageId, less);
    };
  return {
    open: reported(() => {}),
    use: reported(refine),
    add: (info.limits.images ?? 1) > 1 ? reported(addFurther) : null,
    remove: info.live ? remove : null,
  };
}

const isReference = (imageId) => referenceImage()?.id === imageId;

/** Remove an image from the gallery, once the user has said so again. */
async function remove(imageId) {
  if (!(await askToRemove(imageId))) return;
  const wasReference = isReference(imageId);
  const more = wasReference ? " It was the reference image: choose another." : "";
  const words = `Removed ${imageId}.${more}`;
  if (wasReference) setReference(null, false);
  dropFurther(imageId);
  answer.showWithout(imageId, words);
  await picker.showWithout(imageId, words);
  await refresh();
}

/** The gallery has changed, and with it what can be filtered by. */
async function refresh() {
  info = await getInfo().catch(() => info);
  startNames(info);
  refreshFilters(info);
  picker.offerCategories(info);
  suggestLabels(info);
  answer.showAbout(info);
}

const pick = (imageId) => setReference({ id: imageId }, false);
const refine = (imageId) => setReference({ id: imageId }, true);

/** Take another reference image; what should differ from it is said next. */
function setReference(image, fromResults) {
  refining = fromResults;
  showReference(image);
  if (refining) {
    byId("text").value = "";
    answer.showRefining();
  }
  showSteps();
  if (image) byId("text").focus();
}

function showSteps() {
  showTrail(trail, refining ? referenceImage() : null, goTo);
}
