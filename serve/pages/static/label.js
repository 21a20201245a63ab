"use strict";
const LETTERS = "ABCDEFGHI", MARKS = ["helpful", "honest", "harmless"];
const LOOK_AGAIN_MS = 15_000, SAVE_AGAIN_MS = 3_000, LONGEST_PAUSE_MS = 60_000;
let annotator = "", task = null, judgement = null, current = 0;
let steps = [];           // the judgement before each change: u goes back through them
let previous = null;        // the prompt that was judged last: its id, and whether that was for the second time
let watched = 0, watchedSince = 0, timer = 0, saving = false;

function button(className, text, onClick) {
  const node = element("button", className, text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}
const announce = (text) => { byId("status").textContent = text; };
function show(part) { for (const id of ["sign-in", "finished", "task"]) byId(id).hidden = id !== part; }

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
  } catch { /* not ours */ }
  return null;
}

// Time counts while the page is in view, and a pause without any sign of the reader counts for a minute at most.
function tick() {
  if (watchedSince) watched += Math.min(performance.now() - watchedSince, LONGEST_PAUSE_MS);
  watchedSince = document.hidden ? 0 : performance.now();
}
function seconds() { tick(); return Math.round(watched / 100) / 10; }

function openTask(found) {
  task = found;
  const empty = { ranks: {}, marks: {}, allBad: false, better: "" };
  const stored = found.judgement && { ranks: found.judgement.ranks, marks: found.judgement.marks, allBad: found.judgement.all_bad, better: found.judgement.better ?? "" };
  const draft = loadDraft();
  judgement = draft?.said ?? stored ?? empty;
  steps = [];
  watched = 1000 * (draft?.seconds ?? found.judgement?.seconds ?? 0);
  watchedSince = document.hidden ? 0 : performance.now();
  byId("messages").replaceChildren(...found.messages.map((message) => {
    const turn = element("div", `turn ${message.role === "user" ? "user" : "other"}`), body = element("div", "body");
    body.dir = "auto";
    body.append(renderMarkdown(message.content));
    turn.append(element("div", "who", { user: "Person", assistant: "Assistant", system: "Instructions" }[message.role] ?? message.role), body);
    return turn;
  }));
  byId("answers").replaceChildren(...found.answers.map(card));
  byId("slots").replaceChildren(...[...found.answers.keys(), found.answers.length].map((rank) => {
    const slot = element("li", "slot"), last = found.answers.length;
    slot.dataset.rank = rank;
    slot.append(element("span", "quiet", rank === 0 ? "Not ranked" : `${rank}${rank === 1 ? " best" : rank === last ? " worst" : ""}`));
    return slot;
  }));
  byId("slots").append(byId("slots").firstChild);
  byId("better").value = judgement.better;
  byId("better-part").open = Boolean(judgement.better);
  current = 0;
  show("task");
  draw();
  scrollTo(0, 0);
  byId("prompt-title").focus({ preventScroll: true });
}

function card(answer, index) {
  const node = element("article", "answer"), top = element("div", "top"), ranks = element("div", "ranks");
  node.id = `answer-${index}`;
  node.tabIndex = -1;
  ranks.setAttribute("role", "group");
  ranks.setAttribute("aria-label", `Rank of answer ${LETTERS[index]}`);
  ranks.append(...task.answers.map((_, rank) => button("", String(rank + 1), () => { current = index; rankCurrent(rank + 1, false); })));
  const words = answer.text.split(/\s+/).filter(Boolean).length;
  top.append(chip(index), ranks, element("span", "quiet", `${words} word${words === 1 ? "" : "s"}, ${[...answer.text].length} characters`));
  const body = element("div", "body"), marks = element("div", "marks");
  body.dir = "auto";
  body.append(answer.text.trim() ? renderMarkdown(answer.text) : element("p", "quiet", "(an empty answer)"));
  marks.append(...MARKS.map((mark) => button("", mark, () => change(() => turnMark(answer.id, mark)))));
  node.append(top, body, marks);
  node.addEventListener("focusin", () => { if (current !== index) { current = index; drawCurrent(); } });
  node.addEventListener("pointerdown", () => { current = index; drawCurrent(); });
  return node;
}

function turnMark(id, mark) {
  const marks = { ...judgement.marks[id] };
  if (marks[mark] === undefined) marks[mark] = true;
  else if (marks[mark]) marks[mark] = false;
  else delete marks[mark];
  judgement.marks = { ...judgement.marks, [id]: marks };
}

function chip(index) {
  const node = button("chip", LETTERS[index], () => { current = index; drawCurrent(); byId(`answer-${index}`).focus(); });
  node.dataset.index = index;
  node.addEventListener("pointerdown", (event) => startDrag(event, index));
  return node;
}

function startDrag(event, index) {
  if (event.button) return;
  const from = event.currentTarget, begin = [event.clientX, event.clientY];
  let flying = null;
  const slotAt = (at) => document.elementsFromPoint(at.clientX, at.clientY).find((node) => node.classList.contains("slot"));
  const move = (at) => {
    if (!flying && Math.hypot(at.clientX - begin[0], at.clientY - begin[1]) < 5) return;
    if (!flying) { flying = element("div", "chip flying", LETTERS[index]); document.body.append(flying); from.classList.add("left"); }
    flying.style.left = `${at.clientX}px`;
    flying.style.top = `${at.clientY}px`;
    for (const slot of document.querySelectorAll(".slot")) slot.classList.toggle("over", slot === slotAt(at));
  };
  const end = (at) => {
    from.removeEventListener("pointermove", move);
    for (const kind of ["pointerup", "pointercancel"]) from.removeEventListener(kind, end);
    const slot = flying && at.type === "pointerup" ? slotAt(at) : null;
    flying?.remove();
    from.classList.remove("left");
    document.querySelector(".slot.over")?.classList.remove("over");
    if (slot) { current = index; rankCurrent(Number(slot.dataset.rank), false); }
  };
  from.setPointerCapture(event.pointerId);
  from.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) from.addEventListener(kind, end);
}

function change(edit) {
  steps.push({ judgement: structuredClone(judgement), current });
  edit();
  saveDraft();
  draw();
}

function rankCurrent(rank, goOn) {
  const index = current;
  change(() => {
    judgement.allBad = false;
    judgement.ranks = { ...judgement.ranks };
    if (rank) judgement.ranks[task.answers[index].id] = rank; else delete judgement.ranks[task.answers[index].id];
  });
  const next = goOn ? unranked().find((at) => at > index) ?? unranked()[0] : undefined;
  if (next !== undefined) moveTo(next);
  announce(`Answer ${LETTERS[index]}: ${rank ? `rank ${rank}` : "not ranked"}. ${unranked().length ? `Now answer ${LETTERS[current]}.` : "All ranked; Enter confirms."}`);
}

const rankOf = (index) => judgement.ranks[task.answers[index].id];
const unranked = () => [...task.answers.keys()].filter((index) => !rankOf(index));

function moveTo(index) {
  current = Math.max(0, Math.min(task.answers.length - 1, index));
  drawCurrent();
  byId(`answer-${current}`).focus({ preventScroll: true });
  byId(`answer-${current}`).scrollIntoView({ block: "nearest" });
}

function drawCurrent() {
  for (const [index, node] of [...byId("answers").children].entries()) {
    node.setAttribute("aria-current", String(index === current));
    node.tabIndex = index === current ? 0 : -1;
  }
}

function draw() {
  for (const [index, answer] of task.answers.entries()) {
    const node = byId(`answer-${index}`), rank = rankOf(index);
    node.setAttribute("aria-label", `Answer ${LETTERS[index]}, ${rank ? `rank ${rank}` : "not ranked"}`);
    for (const [at, one] of [...node.querySelectorAll(".ranks button")].entries()) one.setAttribute("aria-pressed", String(at + 1 === rank));
    for (const [at, one] of [...node.querySelectorAll(".marks button")].entries()) {
      const value = judgement.marks[answer.id]?.[MARKS[at]];
      one.className = value === undefined ? "" : value ? "yes" : "no";
      one.textContent = value === undefined ? `${MARKS[at]}?` : value ? `✓ ${MARKS[at]}` : `✗ not ${MARKS[at]}`;
    }
  }
  for (const slot of byId("slots").children) {
    const rank = Number(slot.dataset.rank) || undefined;
    for (const old of slot.querySelectorAll(".chip")) old.remove();
    const inside = [...task.answers.keys()].filter((index) => rankOf(index) === rank);
    slot.append(...inside.map(chip));
    slot.hidden = rank === undefined && inside.length === 0;
  }
  byId("all-bad").setAttribute("aria-pressed", String(judgement.allBad));
  byId("undo").disabled = !steps.length && !previous;
  byId("confirm").disabled = !judgement.allBad && unranked().length > 0;
  drawCurrent();
}

async function undo() {
  if (saving) return;
  if (task && steps.length) {
    ({ judgement, current } = steps.pop());
    byId("better").value = judgement.better;
    saveDraft();
    draw();
    announce("Undone.");
  } else if (previous) {
    const before = previous;
    previous = null;
    try { openTask(await ask(`/label/task?prompt=${encodeURIComponent(before.prompt)}&again=${before.again}`)); announce("Back at your last answer; confirm it again when it is right."); }
    catch (error) { previous = before; complain(error.message); }
  }
}

function confirmRanking() {
  if (!judgement.allBad && unranked().length) return announce(`Not ranked yet: ${unranked().map((index) => LETTERS[index]).join(", ")}.`);
  const answers = answerIds();
  return submit(judgement.allBad ? { all_bad: true } : { ranks: answers.map((id) => judgement.ranks[id]) });
}

// The same judgement may be sent again: the server keeps one of each person and prompt.
async function submit(what) {
  if (saving) return;
  saving = true;
  saveDraft();
  const body = { prompt: task.prompt, again: task.again, answers: answerIds(), marks: judgement.marks, seconds: seconds(), ...what };
  if (judgement.better.trim()) body.better = judgement.better;
  for (;;) {
    try { await ask("/label/judgement", body); break; } catch (error) {
      if (error instanceof Refused) { saving = false; complain(error.message); return; }
      complain(`Not saved yet: ${error.message}. It is kept in this browser and sent again.`);
      await new Promise((done) => { setTimeout(done, SAVE_AGAIN_MS); });
    }
  }
  localStorage.removeItem(draftName());
  previous = { prompt: task.prompt, again: task.again };
  task = null;
  await next();
  saving = false;
}

async function next() {
  clearTimeout(timer);
  try {
    const found = await ask("/label/next");
    annotator = found.annotator;
    complain("");
    const { done, left, seconds: pace } = found.progress;
    byId("progress").textContent = `${annotator}: ${done} done, ${left} left${pace ? `, ${Math.round(pace)} s each` : ""}`;
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

byId("confirm").addEventListener("click", confirmRanking);
byId("undo").addEventListener("click", undo);
byId("back").addEventListener("click", undo);
byId("all-bad").addEventListener("click", () => change(() => { judgement.allBad = !judgement.allBad; judgement.ranks = {}; }));
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

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || saving || byId("skip-dialog").open) return;
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "u") { undo(); return event.preventDefault(); }
  if (!task) return;
  const digit = "123456789".indexOf(event.key) + 1;
  if (digit > 0 && event.key.length === 1 && digit <= task.answers.length) rankCurrent(digit, true);
  else if (event.key === "ArrowDown" || event.key === "ArrowRight") moveTo(current + 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") moveTo(current - 1);
  else if (event.key === "b") byId("all-bad").click();
  else if (event.key === "s") byId("skip").click();
  else if (event.key === "Enter" && !event.target.matches("button, summary")) confirmRanking();
  else return;
  event.preventDefault();
});

startSession(next, leave);
