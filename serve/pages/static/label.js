"use strict";
const LOOK_AGAIN_MS = 15_000, SAVE_AGAIN_MS = 3_000, LONGEST_PAUSE_MS = 60_000;
// How many errors a server may answer before the page stops sending the same judgement.
const MOST_FAILURES = 4;
let annotator = "";
let previous = null;        // the prompt that was judged last: its id, and whether that was for the second time
let watched = 0, watchedSince = 0, timer = 0, saving = false;

function show(part) {
  for (const id of ["sign-in", "finished", "task"]) byId(id).hidden = id !== part;
  byId("recent-part").hidden = part === "sign-in";
}

// A draft is kept in this browser until the server has the judgement.
const draftName = () => `triptych draft ${annotator} ${task.prompt}${task.again ? " again" : ""}`;
const answerIds = () => task.answers.map((answer) => answer.id);
function saveDraft() {
  if (task) localStorage.setItem(draftName(), JSON.stringify({ answers: answerIds(), said: judgement, seconds: seconds() }));
}
function loadDraft() {
  try {
    const draft = JSON.parse(localStorage.getItem(draftName()));
    if (draft && String(draft.answers) === String(answerIds())) return draft;
  } catch { /* the entry is damaged */ }
  return null;
}

// Time counts while the page is visible, and a pause without a key press, pointer or scrolling for a minute at most.
function tick() {
  if (watchedSince) watched += Math.min(performance.now() - watchedSince, LONGEST_PAUSE_MS);
  watchedSince = document.hidden ? 0 : performance.now();
}
function seconds() { tick(); return Math.round(watched / 100) / 10; }

function openTask(found) {
  task = found;
  const stored = found.judgement && { ranks: found.judgement.ranks, marks: found.judgement.marks, allBad: found.judgement.all_bad, better: found.judgement.better ?? "" };
  const draft = loadDraft();
  watched = 1000 * (draft?.seconds ?? found.judgement?.seconds ?? 0);
  watchedSince = document.hidden ? 0 : performance.now();
  openBoard(found, draft?.said ?? stored);
  byId("better").value = judgement.better;
  byId("better-part").open = Boolean(judgement.better);
  show("task");
  scrollTo(0, 0);
  byId("prompt-title").focus({ preventScroll: true });
}

async function openPrevious() {
  if (saving || !previous) return;
  const before = previous;
  previous = null;
  if (!(await openAgain(before, "Back at your last answer; confirm it again when it is right."))) previous = before;
}

async function openAgain({ prompt, again }, said) {
  try { openTask(await ask(`/label/task?prompt=${encodeURIComponent(prompt)}&again=${again}`)); }
  catch (error) { complain(error.message); return false; }
  announce(said);
  return true;
}

// The last judgements, each of which can be opened again.
async function showRecent() {
  if (!byId("recent-part").open) return;
  try {
    const found = await ask("/label/recent");
    byId("recent").replaceChildren(...found.map((one) => {
      const item = element("li"), open = button("", one.asked || "(an empty prompt)", () => {
        if (!saving) openAgain({ prompt: one.prompt, again: false }, "An earlier answer; confirm it again when it is right.");
      });
      open.dir = "auto";
      item.append(open, element("span", "quiet", one.said));
      return item;
    }));
    if (!found.length) byId("recent").replaceChildren(element("li", "quiet", "There is none yet."));
  } catch (error) { complain(error.message); }
}

function showSaved(state, text) { byId("saved").className = `saved ${state}`; byId("saved").textContent = text; }

function confirmed() {
  return submit(judgement.allBad ? { all_bad: true } : { ranks: answerIds().map((id) => judgement.ranks[id]) });
}

// The same judgement may be sent again: the server keeps one of each person and prompt. It refuses to overwrite one that
// came from another page since this one was loaded, and then the person chooses.
async function submit(what) {
  if (saving) return;
  saving = true;
  showSaved("", "Saving…");
  saveDraft();
  const body = { prompt: task.prompt, again: task.again, answers: answerIds(), marks: judgement.marks, seconds: seconds(), save: newId(), seen: task.judgement?.created ?? null, ...what };
  let failures = 0, kept = "Saved";
  if (judgement.better.trim()) body.better = judgement.better;
  for (;;) {
    try { await ask("/label/judgement", body); break; } catch (error) {
      if (error.status === 409) {
        if (!(await replacesOther())) { kept = "The other one is kept"; break; }
        delete body.seen;
        continue;
      }
      showSaved("failed", "Not saved");
      if (error instanceof Refused) { saving = false; complain(error.message); return; }
      failures += Boolean(error.status);
      if (failures === MOST_FAILURES) {
        saving = false;
        complain(`Not saved: ${error.message}. It is kept in this browser; Enter sends it again.`);
        return;
      }
      complain(`Not saved yet: ${error.message}. It is kept in this browser and sent again.`);
      await new Promise((done) => { setTimeout(done, SAVE_AGAIN_MS); });
    }
  }
  showSaved("done", kept);
  localStorage.removeItem(draftName());
  previous = { prompt: task.prompt, again: task.again };
  task = null;
  showRecent();
  await next();
  saving = false;
}

// Asks whether this judgement replaces the one from another page.
function replacesOther() {
  const dialog = byId("stale-dialog");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((chosen) => { dialog.addEventListener("close", () => chosen(dialog.returnValue === "replace"), { once: true }); });
}

async function next() {
  clearTimeout(timer);
  try {
    const found = await ask("/label/next");
    annotator = found.annotator;
    complain("");
    const { done, left, seconds: pace } = found.progress;
    byId("progress").textContent = `${annotator}: ${done} done, ${left} left${pace ? `, ${Math.round(pace)} s each` : ""}`;
    byId("done").max = done + left || 1;
    byId("done").value = done;
    if (found.task) { openTask(found.task); return; }
    const shown = !byId("finished").hidden;
    show("finished");
    byId("back").hidden = !previous;
    if (!shown) byId("finished-title").focus();
  } catch (error) {
    if (!localStorage.getItem("triptych token")) return complain(error.message);
    complain(`The next prompt could not be loaded: ${error.message}. Trying again.`);
  }
  timer = setTimeout(next, byId("finished").hidden ? SAVE_AGAIN_MS : LOOK_AGAIN_MS);
}

function leave() {
  clearTimeout(timer);
  task = previous = null;
  byId("progress").textContent = "";
}

byId("recent-part").addEventListener("toggle", showRecent);
byId("back").addEventListener("click", openPrevious);
byId("skip").addEventListener("click", () => byId("skip-dialog").showModal());
byId("other").addEventListener("input", () => { document.querySelector('[name="reason"][value="other"]').checked = true; });
byId("skip-form").addEventListener("submit", (event) => {
  if (event.submitter?.value === "cancel") return;
  const reason = new FormData(event.target).get("reason"), own = byId("other").value.trim();
  byId("other").value = "";
  submit({ skipped: reason === "other" ? own || "other" : reason });
});
byId("better").addEventListener("input", () => { judgement.better = byId("better").value; saveDraft(); });
document.addEventListener("visibilitychange", tick);
for (const kind of ["keydown", "pointermove", "scroll"]) document.addEventListener(kind, tick, { passive: true });
addEventListener("pagehide", saveDraft);

Object.assign(board, {
  changed: saveDraft, confirmed, undone: openPrevious, before: () => previous, isPaused: () => saving || byId("skip-dialog").open,
});
startSession(next, leave);
